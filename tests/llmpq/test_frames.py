"""The hand-spliced codec of the data plane against the generated one."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import random
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest

from llmpq.device import Phase
from llmpq.errors import CorruptDataError, InvalidInputError
from llmpq.frame_chunks import FrameAssembler
from llmpq.frames import (
    FORWARD_METHOD,
    SERVICE_NAME,
    DataType,
    Frame,
    FrameOutput,
    Sampling,
    StageTiming,
    encode_ack,
    encode_frame,
)
from llmpq.rpc import open_channel, serving
from llmpq.v1 import activation_service_pb2 as pb
from llmpq.v1.activation_service_pb2_grpc import (
    ActivationServiceServicer,
    ActivationServiceStub,
    add_ActivationServiceServicer_to_server,
)

FULL = Frame(
    deployment_id="d-1",
    frame_id=2**40,
    phase=Phase.PREFILL,
    slots=[3, 0, 700],
    starts=[0, 5, 128],
    counts=[2, 1, 1],
    data_type=DataType.FLOAT32,
    dimensions=(4, 2),
    payload=bytes(range(32)),
    output=FrameOutput.TOKENS,
    emits=[True, False, True],
    sampling=[Sampling(), Sampling(temperature=0.5, top_p=0.25, top_k=40, seed=2**63), Sampling()],
    timings=[StageTiming(0, 10, 2**33), StageTiming(1, 0, 7)],
)
SCORES = replace(FULL, output=FrameOutput.SCORES, emits=[], sampling=[], targets=[5, -1, 0, 49151])
TOKENS_IN = replace(
    FULL,
    phase=Phase.DECODE,
    counts=[1, 1, 1],
    data_type=DataType.INT32,
    dimensions=(3,),
    payload=bytes(12),
)
EMPTY = replace(FULL, output=FrameOutput.NONE, emits=[], sampling=[], dimensions=(0,), payload=b"")
HALVES = replace(FULL, data_type=DataType.BFLOAT16, payload=bytes(16))
LARGE = replace(FULL, dimensions=(4, 70_000), payload=random.Random(0).randbytes(4 * 70_000 * 4))  # noqa: S311

FRAMES = pytest.mark.parametrize(
    "frame",
    [FULL, SCORES, TOKENS_IN, EMPTY, HALVES, LARGE],
    ids=["full", "scores", "tokens in", "empty", "halves", "large"],
)


def decode_frame(raw: bytes) -> Frame:
    """The frame that is one message."""
    frame = FrameAssembler().take(raw)
    assert frame is not None
    return frame


@FRAMES
def test_the_bytes_are_those_of_the_generated_code(frame: Frame) -> None:
    """Parsing with the generated parser and serializing again gives the same bytes."""
    raw = encode_frame(frame)
    assert pb.ForwardRequest.FromString(raw).SerializeToString(deterministic=True) == raw


@FRAMES
def test_a_frame_survives_the_round_trip(frame: Frame) -> None:
    """Decoding an encoded frame gives an equal one."""
    assert decode_frame(encode_frame(frame)) == frame


def test_decoding_does_not_copy_the_payload() -> None:
    """The payload is a view into the received bytes."""
    raw = encode_frame(FULL)
    payload = decode_frame(raw).payload
    assert isinstance(payload, memoryview)
    assert payload.obj is raw


def test_fields_in_any_order_are_read() -> None:
    """A sender may write the payload before other fields, as protobuf allows: concatenation is merging."""
    raw = encode_frame(FULL)
    first = pb.ForwardRequest(payload=FULL.payload).SerializeToString()
    rest = pb.ForwardRequest.FromString(raw)
    rest.ClearField("payload")
    assert decode_frame(first + rest.SerializeToString()) == FULL


def test_unknown_fields_are_skipped() -> None:
    """A newer sender's fields do not disturb an older receiver."""
    future_varint, future_bytes, future_fixed64 = b"\xf8\x3f\x07", b"\xfa\x3f\x02hi", b"\xf9\x3f" + bytes(8)
    for field in (future_varint, future_bytes, future_fixed64):
        assert decode_frame(field + encode_frame(FULL)) == FULL


def test_a_truncated_frame_is_refused_at_every_length() -> None:
    """No prefix of a frame passes for a frame, and none raises anything but the documented errors."""
    raw = encode_frame(FULL)
    for length in range(len(raw)):
        with pytest.raises((InvalidInputError, CorruptDataError)):
            decode_frame(raw[:length])


def test_garbage_is_refused() -> None:
    """Random bytes raise InvalidInputError or CorruptDataError, nothing else."""
    source = random.Random(1)  # noqa: S311
    for _ in range(500):
        with pytest.raises((InvalidInputError, CorruptDataError)):
            decode_frame(source.randbytes(source.randrange(200)))


def test_a_flipped_bit_in_the_payload_is_found() -> None:
    """A payload that does not match its checksum raises CorruptDataError that names the frame."""
    raw = bytearray(encode_frame(FULL))
    raw[-3] ^= 1
    with pytest.raises(CorruptDataError, match=str(FULL.frame_id)):
        decode_frame(bytes(raw))


def test_a_payload_that_was_never_sent_is_found() -> None:
    """An empty payload has a checksum as well."""
    message = pb.ForwardRequest.FromString(encode_frame(EMPTY))
    message.payload_crc32 = zlib.crc32(b"lost")
    with pytest.raises(CorruptDataError):
        decode_frame(message.SerializeToString())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"slots": [1]}, "one entry a sequence"),
        ({"slots": [], "starts": [], "counts": []}, "one entry a sequence"),
        ({"counts": [2, 0, 1]}, "at least one row"),
        ({"sampling": [Sampling()]}, "sampling must be empty"),
        ({"emits": [True]}, "emits must have"),
        ({"output": FrameOutput.SCORES, "targets": [1]}, "targets must have"),
        ({"dimensions": (4, 3)}, "needs 48 bytes of payload, got 32"),
        ({"data_type": DataType.FLOAT16}, "needs 16 bytes"),
    ],
)
def test_a_frame_that_contradicts_itself_is_refused(change: dict[str, object], problem: str) -> None:
    """The error names the frame and what is wrong with it."""
    with pytest.raises(InvalidInputError, match=problem) as refused:
        decode_frame(encode_frame(replace(FULL, **change)))
    assert refused.value.subject == f"frame {FULL.frame_id}"


def test_an_enum_value_of_the_future_is_refused() -> None:
    """A phase, an output or a data type that this side does not know cannot be computed."""
    for field in ("phase", "output", "data_type"):
        message = pb.ForwardRequest.FromString(encode_frame(FULL))
        setattr(message, field, 99)
        with pytest.raises(InvalidInputError, match="unknown enum value"):
            decode_frame(message.SerializeToString())


class _GeneratedServer(ActivationServiceServicer):
    """A stage in another language: sees messages, knows nothing of the codec."""

    def __init__(self) -> None:
        self.received: list[pb.ForwardRequest] = []

    async def Forward(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ForwardRequest], _context: object
    ) -> AsyncIterator[pb.ForwardResponse]:
        async for message in request_iterator:
            self.received.append(message)
            yield pb.ForwardResponse(frame_id=message.frame_id)


async def test_a_generated_server_understands_encoded_frames() -> None:
    """Frames written by the codec arrive whole at an ordinary generated servicer."""
    servicer = _GeneratedServer()
    async with (
        serving(
            "127.0.0.1:0",
            lambda server: add_ActivationServiceServicer_to_server(servicer, server),
            [SERVICE_NAME],
        ) as server,
        open_channel(server.address, is_data_plane=True) as channel,
    ):
        forward = channel.stream_stream(
            FORWARD_METHOD,
            request_serializer=encode_frame,
            response_deserializer=pb.ForwardResponse.FromString,
        )
        call = forward()
        for frame in (FULL, LARGE, EMPTY):
            await call.write(frame)
            assert (await call.read()).frame_id == frame.frame_id
        await call.done_writing()
    assert [decode_frame(message.SerializeToString()) for message in servicer.received] == [FULL, LARGE, EMPTY]


async def test_a_generated_stub_talks_to_the_codec() -> None:
    """An ordinary generated stub is understood by a server that reads frames with the codec, and reads its answers."""
    received: list[Frame] = []

    async def forward(frames: AsyncIterator[Frame], _context: object) -> AsyncIterator[int]:
        async for frame in frames:
            received.append(frame)
            yield frame.frame_id

    handler = grpc.stream_stream_rpc_method_handler(forward, decode_frame, encode_ack)
    handlers = grpc.method_handlers_generic_handler(SERVICE_NAME, {"Forward": handler})
    async with (
        serving("127.0.0.1:0", lambda server: server.add_generic_rpc_handlers((handlers,)), [SERVICE_NAME]) as server,
        open_channel(server.address, is_data_plane=True) as channel,
    ):
        call = ActivationServiceStub(channel).Forward()
        await call.write(pb.ForwardRequest.FromString(encode_frame(FULL)))
        assert (await call.read()).frame_id == FULL.frame_id
        await call.done_writing()
    assert received == [FULL]
