"""Frames that take several messages."""

from __future__ import annotations

import random
import zlib
from dataclasses import replace

import pytest

from llmpq.device import Phase
from llmpq.errors import CorruptDataError, InvalidInputError
from llmpq.frame_chunks import CHUNK_BYTES, FrameAssembler, messages_of
from llmpq.frames import MAX_FRAME_BYTES, DataType, Frame, FrameOutput, StageTiming, encode_frame
from llmpq.rpc.channel import MAX_MESSAGE_BYTES
from llmpq.v1 import activation_service_pb2 as pb

WIDTH = 3000
ROW_BYTES = WIDTH * 4


def frame_of_rows(num_rows: int) -> Frame:
    """A prefill frame of one sequence with random hidden states."""
    return Frame(
        deployment_id="d-1",
        frame_id=7,
        phase=Phase.PREFILL,
        slots=[3],
        starts=[5],
        counts=[num_rows],
        data_type=DataType.FLOAT32,
        dimensions=(num_rows, WIDTH),
        payload=random.Random(num_rows).randbytes(num_rows * ROW_BYTES),  # noqa: S311
        output=FrameOutput.TOKENS,
        emits=[True],
        timings=[StageTiming(0, 10, 2**33)],
    )


LARGE = frame_of_rows(1000)
SMALL = frame_of_rows(4)


def cut(frame: Frame, rows: list[int]) -> list[pb.ForwardRequest]:
    """The messages of a frame that is cut into so many rows each, made as a client in any language makes them."""
    messages, first_row = [], 0
    for number in rows:
        message = pb.ForwardRequest(deployment_id=frame.deployment_id, frame_id=frame.frame_id, first_row=first_row)
        if not first_row:
            message.ParseFromString(encode_frame(frame))
        message.payload = bytes(frame.payload)[first_row * ROW_BYTES : (first_row + number) * ROW_BYTES]
        message.payload_crc32 = zlib.crc32(message.payload)
        first_row += number
        message.has_more = first_row < sum(rows)
        messages.append(message)
    return messages


def put_together(messages: list[pb.ForwardRequest]) -> list[Frame]:
    """The frames that a receiver makes of a stream."""
    assembler = FrameAssembler()
    frames = [assembler.take(message.SerializeToString()) for message in messages]
    assembler.end()
    return [frame for frame in frames if frame is not None]


@pytest.mark.parametrize("num_rows", [88, 174, 1000])
def test_a_large_frame_survives_the_round_trip(num_rows: int) -> None:
    """However many messages a frame takes, none is over the limit, and the last one completes an equal frame."""
    frame = frame_of_rows(num_rows)
    messages = list(messages_of(frame))
    assembler = FrameAssembler()

    assert [assembler.take(raw) for raw in messages] == [*(None for _ in messages[1:]), frame]
    assert len(messages) == -(-num_rows // (CHUNK_BYTES // ROW_BYTES))
    assert max(map(len, messages)) <= MAX_MESSAGE_BYTES


def test_a_frame_that_fits_is_one_message() -> None:
    """A frame that is not worth cutting is one message of plain protobuf, which is read without copying."""
    frame = frame_of_rows(CHUNK_BYTES // ROW_BYTES)
    (raw,) = messages_of(frame)
    (received,) = filter(None, [FrameAssembler().take(raw)])

    assert raw == encode_frame(frame)
    assert isinstance(received.payload, memoryview)
    assert received.payload.obj is raw


def test_a_sender_may_cut_where_it_likes() -> None:
    """Messages of generated code with any numbers of rows make the same frame, also one after another."""
    messages = [*cut(SMALL, [1, 2, 1]), *cut(LARGE, [1, 300, 699]), *cut(SMALL, [4])]

    assert put_together(messages) == [SMALL, LARGE, SMALL]


OTHER = replace(SMALL, frame_id=8)
ELSEWHERE = replace(SMALL, deployment_id="d-2")
FIRST, SECOND, THIRD = cut(SMALL, [1, 2, 1])


def changed(message: pb.ForwardRequest, **fields: object) -> pb.ForwardRequest:
    """The message with other values in some fields."""
    other = pb.ForwardRequest()
    other.CopyFrom(message)
    for name, value in fields.items():
        if isinstance(value, list):
            other.ClearField(name)
            getattr(other, name).extend(value)
        else:
            setattr(other, name, value)
    return other


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([SECOND, THIRD], "row 1 came without those before"),
        ([FIRST, THIRD], "after 1 of 4 rows row 3 came"),
        ([FIRST, SECOND, SECOND], "after 3 of 4 rows row 1 came"),
        ([FIRST, FIRST], "after 1 of 4 rows row 0 came"),
        ([FIRST, *cut(OTHER, [4])], "after 1 of 4 rows frame 8 of deployment 'd-1' came"),
        ([FIRST, cut(OTHER, [1, 2, 1])[1], SECOND], "after 1 of 4 rows frame 8 of deployment 'd-1' came"),
        ([FIRST, cut(ELSEWHERE, [1, 3])[1]], "after 1 of 4 rows frame 7 of deployment 'd-2' came"),
        ([FIRST, SECOND], "after 3 of 4 rows the stream ended"),
        ([FIRST, changed(SECOND, has_more=False)], "after 3 of 4 rows no more were to come"),
        ([FIRST, *cut(frame_of_rows(9), [1, 8])[1:]], "after 1 of 4 rows 96000 bytes came"),
        (
            [changed(FIRST, payload=FIRST.payload[:-4], payload_crc32=zlib.crc32(FIRST.payload[:-4]))],
            "no rows of 12000",
        ),
        ([changed(FIRST, payload=b"", payload_crc32=0)], "after 0 of 4 rows 0 bytes came"),
        ([changed(FIRST, dimensions=[])], "cannot be cut"),
        ([changed(FIRST, dimensions=[4, 0])], "cannot be cut"),
        ([changed(FIRST, data_type=99)], "unknown enum value"),
        ([changed(FIRST, dimensions=[2**32 - 1, 2**32 - 1])], f"is over {MAX_FRAME_BYTES:,} bytes"),
        ([changed(FIRST, emits=[]), SECOND, THIRD], "emits must have"),
    ],
)
def test_messages_that_make_no_frame_are_refused(messages: list[pb.ForwardRequest], problem: str) -> None:
    """Rows that are missing, repeated, of another frame or too many are INVALID_ARGUMENT, and the error says which."""
    with pytest.raises(InvalidInputError, match=problem) as refused:
        put_together(messages)
    assert refused.value.subject == "frame 7"


def test_every_message_has_a_checksum() -> None:
    """A bit that was changed in any of the messages is found with that message."""
    for number, message in enumerate(cut(SMALL, [1, 2, 1])):
        before, damaged = cut(SMALL, [1, 2, 1])[:number], bytearray(message.SerializeToString())
        damaged[-1] ^= 1
        assembler = FrameAssembler()
        for earlier in before:
            assembler.take(earlier.SerializeToString())
        with pytest.raises(CorruptDataError, match="Frame 7"):
            assembler.take(bytes(damaged))
