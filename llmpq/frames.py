"""Frames of the data plane: one micro-batch on the wire, as valid protobuf with the payload spliced in.

`ForwardRequest.payload` has the highest field number, so the message is the serialized header followed by tag, length
and the payload's own bytes. Encoding copies the payload once, into the message; decoding does not copy it at all. An
ordinary generated stub reads and writes the same bytes.
"""

import zlib
from dataclasses import dataclass, field
from enum import IntEnum
from math import isfinite, prod

from google.protobuf.message import DecodeError

from llmpq.device import Phase
from llmpq.errors import CorruptDataError, InvalidInputError
from llmpq.v1 import activation_service_pb2 as pb
from llmpq.v1 import plan_pb2

#: Full name of the method that carries frames.
FORWARD_METHOD = "/llmpq.v1.ActivationService/Forward"
SERVICE_NAME = "llmpq.v1.ActivationService"

_PAYLOAD_TAG = b"\xc2\x3e"  # field 1000, length-delimited


class DataType(IntEnum):
    """Mirror of the message enum `DataType`."""

    FLOAT32 = pb.DATA_TYPE_FLOAT32
    FLOAT16 = pb.DATA_TYPE_FLOAT16
    BFLOAT16 = pb.DATA_TYPE_BFLOAT16
    INT32 = pb.DATA_TYPE_INT32

    @property
    def num_bytes(self) -> int:
        """Bytes of one element."""
        return 2 if self in {DataType.FLOAT16, DataType.BFLOAT16} else 4


class FrameOutput(IntEnum):
    """Mirror of the message enum `FrameOutput`."""

    NONE = pb.FRAME_OUTPUT_UNSPECIFIED
    TOKENS = pb.FRAME_OUTPUT_TOKENS
    SCORES = pb.FRAME_OUTPUT_SCORES


@dataclass(frozen=True, slots=True)
class Sampling:
    """Mirror of the message `SamplingParameters`; the default is greedy."""

    temperature: float = 0.0
    top_p: float = 0.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class StageTiming:
    """Mirror of the message `StageTiming`."""

    stage: int
    wait_ns: int
    compute_ns: int
    start_unix_ns: int = 0


@dataclass(slots=True)
class Frame:
    """Mirror of the message `ForwardRequest`; see there for each field.

    `payload` holds `prod(dimensions)` elements of `data_type`, little-endian and row-major.
    """

    deployment_id: str
    frame_id: int
    phase: Phase
    slots: list[int]
    starts: list[int]
    counts: list[int]
    data_type: DataType
    dimensions: tuple[int, ...]
    payload: bytes | memoryview
    output: FrameOutput = FrameOutput.NONE
    emits: list[bool] = field(default_factory=list)
    sampling: list[Sampling] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    timings: list[StageTiming] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """New tokens of all its sequences."""
        return sum(self.counts)


def encode_frame(frame: Frame) -> bytes:
    """Serializes a frame."""
    header = pb.ForwardRequest(
        deployment_id=frame.deployment_id,
        frame_id=frame.frame_id,
        phase=_PHASE_NUMBER[frame.phase],
        slots=frame.slots,
        starts=frame.starts,
        counts=frame.counts,
        output=pb.FrameOutput.ValueType(frame.output),
        emits=frame.emits,
        targets=frame.targets,
        data_type=pb.DataType.ValueType(frame.data_type),
        dimensions=frame.dimensions,
        payload_crc32=zlib.crc32(frame.payload),
    )
    for draw in frame.sampling:
        header.sampling.add(
            temperature=draw.temperature,
            top_p=draw.top_p,
            top_k=draw.top_k,
            seed=draw.seed,
        )
    for timing in frame.timings:
        header.timings.add(
            stage=timing.stage,
            wait_ns=timing.wait_ns,
            compute_ns=timing.compute_ns,
            start_unix_ns=timing.start_unix_ns,
        )
    head = header.SerializeToString()
    if not len(frame.payload):  # protobuf leaves an empty last field out
        return head
    return b"".join((head, _PAYLOAD_TAG, _varint(len(frame.payload)), frame.payload))


def decode_frame(raw: bytes) -> Frame:
    """Parses and checks a frame; its payload is a view into `raw`.

    Raises:
        InvalidInputError: Not a frame, or one that contradicts itself.
        CorruptDataError: The payload does not match its checksum.
    """
    header, payload = _split(raw)
    try:
        frame = Frame(
            deployment_id=header.deployment_id,
            frame_id=header.frame_id,
            phase=_PHASE_OF_NUMBER[header.phase],
            slots=list(header.slots),
            starts=list(header.starts),
            counts=list(header.counts),
            output=FrameOutput(header.output),
            emits=list(header.emits),
            sampling=[Sampling(d.temperature, d.top_p, d.top_k, d.seed) for d in header.sampling],
            targets=list(header.targets),
            timings=[StageTiming(t.stage, t.wait_ns, t.compute_ns, t.start_unix_ns) for t in header.timings],
            data_type=DataType(header.data_type),
            dimensions=tuple(header.dimensions),
            payload=payload,
        )
    except (KeyError, ValueError) as error:
        raise _invalid(header.frame_id, f"unknown enum value: {error}") from error
    _check(frame)
    if zlib.crc32(payload) != header.payload_crc32:
        raise CorruptDataError(
            f"Frame {frame.frame_id}: the payload does not match its checksum; suspect network or memory.",
            subject=f"frame {frame.frame_id}",
        )
    return frame


def encode_ack(frame_id: int) -> bytes:
    """Serializes the acknowledgement of a frame."""
    return pb.ForwardResponse(frame_id=frame_id).SerializeToString()


_PHASE_NUMBER = {phase: plan_pb2.Phase.Value(phase.value) for phase in Phase}
_PHASE_OF_NUMBER = {number: phase for phase, number in _PHASE_NUMBER.items()}


def _split(raw: bytes) -> tuple[pb.ForwardRequest, memoryview]:
    """Header and payload of a message. A payload that is not the last field is found by the generated parser."""
    try:
        start = _payload_start(raw)
        if start is None:
            message = pb.ForwardRequest.FromString(raw)
            return message, memoryview(message.payload)
        tag_at, payload_at = start
        return pb.ForwardRequest.FromString(raw[:tag_at]), memoryview(raw)[payload_at:]
    except (DecodeError, IndexError) as error:
        raise InvalidInputError("A message on Forward is not a frame.", subject="frame") from error


def _payload_start(raw: bytes) -> tuple[int, int] | None:
    """Offsets of the payload's tag and first byte, if the payload is the last field of the message."""
    at = 0
    while at < len(raw):
        tag_at = at
        tag, at = _read_varint(raw, at)
        if tag & 7 == _LENGTH_DELIMITED:
            length, at = _read_varint(raw, at)
            if tag >> 3 == pb.ForwardRequest.PAYLOAD_FIELD_NUMBER:
                return (tag_at, at) if at + length == len(raw) else None
            at += length
        elif tag & 7 == _VARINT:
            _, at = _read_varint(raw, at)
        else:
            return None
    return None


_VARINT, _LENGTH_DELIMITED = 0, 2


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """The varint at an offset, and the offset after it."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 the continuation bit
            return value, at
        shift += 7


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 seven bits a byte
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _check(frame: Frame) -> None:
    num_sequences = len(frame.slots)
    if not num_sequences or len(frame.starts) != num_sequences or len(frame.counts) != num_sequences:
        raise _invalid(frame.frame_id, "slots, starts and counts must have one entry a sequence")
    if min(frame.counts) < 1:
        raise _invalid(frame.frame_id, "every sequence needs at least one row")
    if frame.sampling and len(frame.sampling) != num_sequences:
        raise _invalid(frame.frame_id, "sampling must be empty or have one entry a sequence")
    if frame.output is FrameOutput.TOKENS and len(frame.emits) != num_sequences:
        raise _invalid(frame.frame_id, "emits must have one entry a sequence")
    if frame.output is FrameOutput.SCORES and len(frame.targets) != frame.num_rows:
        raise _invalid(frame.frame_id, "targets must have one entry a row")
    if not all(_is_drawable(draw) for draw in frame.sampling):
        raise _invalid(frame.frame_id, "temperature must be finite and not negative, top_p from 0 to 1")
    if min(frame.targets, default=0) < -1:
        raise _invalid(frame.frame_id, "targets must be token ids or -1")
    if frame.phase is Phase.DECODE and frame.num_rows != num_sequences:
        raise _invalid(frame.frame_id, "a decode frame has one row a sequence")
    expected_bytes = prod(frame.dimensions) * frame.data_type.num_bytes
    if len(frame.payload) != expected_bytes:
        raise _invalid(
            frame.frame_id,
            f"shape {frame.dimensions} needs {expected_bytes} bytes of payload, got {len(frame.payload)}",
        )


def _is_drawable(draw: Sampling) -> bool:
    return isfinite(draw.temperature) and draw.temperature >= 0 and 0 <= draw.top_p <= 1


def _invalid(frame_id: int, problem: str) -> InvalidInputError:
    return InvalidInputError(f"Frame {frame_id}: {problem}.", subject=f"frame {frame_id}")
