"""Frames of the data plane: one micro-batch on the wire."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import isfinite, prod

from llmpq.device import Phase
from llmpq.errors import InvalidInputError
from llmpq.frame_message import write_message
from llmpq.v1 import activation_service_pb2 as pb
from llmpq.v1 import plan_pb2

#: Full name of the method that carries frames.
FORWARD_METHOD = "/llmpq.v1.ActivationService/Forward"
SERVICE_NAME = "llmpq.v1.ActivationService"

#: Most rows of a frame. What is said of each of them, and of as many sequences, stays below the mebibyte that a message
#: has for its header; and no device computes faster with more.
MAX_FRAME_ROWS = 2**14
#: Largest payload of a frame: so many rows of float32, as wide as the widest models are. What claims to be larger is a
#: mistake, for which no memory is set aside.
MAX_FRAME_BYTES = MAX_FRAME_ROWS * 2**14 * 4

#: Elements of a row of INT8 that share a scale.
INT8_GROUP_SIZE = 64


def int8_row_bytes(width: int) -> int:
    """Bytes of a row of so many elements as INT8: a byte each, and a float32 for each group."""
    return width + 4 * -(-width // INT8_GROUP_SIZE)


def hidden_row_bytes(hidden_size: int, activation_bytes: int, *, is_int8: bool) -> int:
    """Bytes of a token's hidden states on their way between stages."""
    return int8_row_bytes(hidden_size) if is_int8 else hidden_size * activation_bytes


class DataType(IntEnum):
    """Mirror of the message enum `DataType`."""

    FLOAT32 = pb.DATA_TYPE_FLOAT32
    FLOAT16 = pb.DATA_TYPE_FLOAT16
    BFLOAT16 = pb.DATA_TYPE_BFLOAT16
    INT32 = pb.DATA_TYPE_INT32
    INT8 = pb.DATA_TYPE_INT8

    def payload_bytes(self, dimensions: Sequence[int]) -> int:
        """Bytes of a tensor of that shape."""
        *outer, width = dimensions or (1,)
        if self is DataType.INT8:
            return prod(outer) * int8_row_bytes(width)
        return prod(outer) * width * (2 if self in {DataType.FLOAT16, DataType.BFLOAT16} else 4)


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

    `payload` holds a tensor of `dimensions` and `data_type`, little-endian and row-major.
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


def max_frame_rows(row_bytes: int) -> int:
    """Rows of so many bytes that a frame may have; at least 1."""
    return max(min(MAX_FRAME_ROWS, MAX_FRAME_BYTES // row_bytes), 1)


def encode_frame(frame: Frame) -> bytes:
    """Serializes a frame whose payload fits one message; see `frame_chunks` for any."""
    return write_message(header_of(frame), frame.payload)


def header_of(frame: Frame) -> pb.ForwardRequest:
    """The message of a frame without its payload."""
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
    return header


def frame_of(header: pb.ForwardRequest, payload: memoryview) -> Frame:
    """The frame of a message and all of its payload.

    Raises:
        InvalidInputError: They contradict themselves or each other.
    """
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
        raise invalid_frame(header.frame_id, f"unknown enum value: {error}") from error
    _check(frame)
    return frame


def encode_ack(frame_id: int) -> bytes:
    """Serializes the acknowledgement of a frame."""
    return pb.ForwardResponse(frame_id=frame_id).SerializeToString()


def invalid_frame(frame_id: int, problem: str) -> InvalidInputError:
    """The error of a frame that cannot be read."""
    return InvalidInputError(f"Frame {frame_id}: {problem}.", subject=f"frame {frame_id}")


_PHASE_NUMBER = {phase: plan_pb2.Phase.Value(phase.value) for phase in Phase}
_PHASE_OF_NUMBER = {number: phase for phase, number in _PHASE_NUMBER.items()}


def _check(frame: Frame) -> None:
    num_sequences = len(frame.slots)
    if not num_sequences or len(frame.starts) != num_sequences or len(frame.counts) != num_sequences:
        raise invalid_frame(frame.frame_id, "slots, starts and counts must have one entry a sequence")
    if min(frame.counts) < 1:
        raise invalid_frame(frame.frame_id, "every sequence needs at least one row")
    if frame.sampling and len(frame.sampling) != num_sequences:
        raise invalid_frame(frame.frame_id, "sampling must be empty or have one entry a sequence")
    if frame.output is FrameOutput.TOKENS and len(frame.emits) != num_sequences:
        raise invalid_frame(frame.frame_id, "emits must have one entry a sequence")
    if frame.output is FrameOutput.SCORES and len(frame.targets) != frame.num_rows:
        raise invalid_frame(frame.frame_id, "targets must have one entry a row")
    if not all(_is_drawable(draw) for draw in frame.sampling):
        raise invalid_frame(frame.frame_id, "temperature must be finite and not negative, top_p from 0 to 1")
    if min(frame.targets, default=0) < -1:
        raise invalid_frame(frame.frame_id, "targets must be token ids or -1")
    if frame.phase is Phase.DECODE and frame.num_rows != num_sequences:
        raise invalid_frame(frame.frame_id, "a decode frame has one row a sequence")
    expected_bytes = frame.data_type.payload_bytes(frame.dimensions)
    if len(frame.payload) != expected_bytes:
        raise invalid_frame(
            frame.frame_id,
            f"shape {frame.dimensions} needs {expected_bytes} bytes of payload, got {len(frame.payload)}",
        )


def _is_drawable(draw: Sampling) -> bool:
    return isfinite(draw.temperature) and draw.temperature >= 0 and 0 <= draw.top_p <= 1
