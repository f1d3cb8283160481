"""How fast frames travel: through the data plane that stages use, to another process on this host and back."""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from llmpq.bench.wire_echo import FrameReceiver, receiving
from llmpq.device import Phase
from llmpq.frame_chunks import FrameAssembler, messages_of
from llmpq.frames import DataType, Frame, FrameOutput
from llmpq.mesh_process import MeshProcess
from llmpq.rpc.data_plane import ForwardStream

#: Sequences of a frame, as in a decode micro-batch.
_SEQUENCES = 32
#: Frames on their way when bandwidth is measured.
_IN_FLIGHT = 4
_WARM_UP = 20
#: Rounds that a figure is taken over: at least, at most, and enough if they took so many seconds.
_MIN_ROUNDS, _MAX_ROUNDS, _ENOUGH_S = 20, 2000, 1.0


@dataclass(frozen=True)
class WireTiming:
    """Frames of one payload.

    Attributes:
        transport: gRPC, as between hosts, or the local link, as on one host.
        payload_bytes: Of each frame.
        round_trip_ms: Median of there and back, one frame at a time.
        bytes_per_s: Payload that passes each way with several frames on their way.
        serialization_share: Part of the round trip spent encoding and decoding, twice each.
    """

    transport: str
    payload_bytes: int
    round_trip_ms: float
    bytes_per_s: float
    serialization_share: float


async def time_wire(payloads: Sequence[int]) -> list[WireTiming]:
    """Starts the other process and times frames of each payload (bytes, multiples of 4), by both transports.

    Raises:
        UnavailableError: The other process did not start, or died.
    """
    return [timing for by_grpc in (False, True) for timing in await _time_transport(payloads, by_grpc=by_grpc)]


async def _time_transport(payloads: Sequence[int], *, by_grpc: bool) -> list[WireTiming]:
    receiver = FrameReceiver()
    async with receiving("127.0.0.1:0", receiver) as address:
        flags = ("--to", address, *(("--by-grpc",) if by_grpc else ()))
        echo = MeshProcess("echo", "llmpq.bench.wire_echo", flags, "127.0.0.1:0", lambda _name, _line: None)
        await echo.start()
        try:
            async with ForwardStream(echo.address, by_grpc=by_grpc) as there:
                watching = asyncio.create_task(there.watch())
                timings = [await _time_payload(there, receiver, size, by_grpc=by_grpc) for size in payloads]
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
                return timings
        finally:
            await echo.stop()


async def _time_payload(
    there: ForwardStream, receiver: FrameReceiver, payload_bytes: int, *, by_grpc: bool
) -> WireTiming:
    frame = _frame(payload_bytes)

    async def round_trip() -> None:
        await there.send(frame)
        await receiver.frames.get()

    for _ in range(_WARM_UP):
        await round_trip()
    trips: list[float] = []
    while len(trips) < _MIN_ROUNDS or (sum(trips) < _ENOUGH_S and len(trips) < _MAX_ROUNDS):
        started = time.perf_counter()
        await round_trip()
        trips.append(time.perf_counter() - started)
    trip_s = median(trips)
    num_frames = min(max(int(_ENOUGH_S / trip_s) * 2, _MIN_ROUNDS), _MAX_ROUNDS)
    return WireTiming(
        "gRPC" if by_grpc else "local",
        payload_bytes,
        trip_s * 1e3,
        payload_bytes * num_frames / await _stream(there, receiver, frame, num_frames),
        2 * _serialization_s(frame) / trip_s,
    )


async def _stream(there: ForwardStream, receiver: FrameReceiver, frame: Frame, num_frames: int) -> float:
    """Seconds until so many frames are back, of which a few are on their way at any time."""
    started = time.perf_counter()
    for number in range(num_frames + _IN_FLIGHT):
        if number < num_frames:
            await there.send(frame)
        if number >= _IN_FLIGHT:
            await receiver.frames.get()
    return time.perf_counter() - started


def _serialization_s(frame: Frame) -> float:
    """Median seconds to encode a frame and decode it."""
    messages = list(messages_of(frame))
    assembler = FrameAssembler()
    encode_s = _median_s(lambda: deque(messages_of(frame), maxlen=0))
    return encode_s + _median_s(lambda: [assembler.take(raw) for raw in messages])


def _median_s(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_MIN_ROUNDS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def _frame(payload_bytes: int) -> Frame:
    """A decode frame between stages, its hidden states of random bytes."""
    return Frame(
        deployment_id="bench",
        frame_id=0,
        phase=Phase.DECODE,
        slots=list(range(_SEQUENCES)),
        starts=[512] * _SEQUENCES,
        counts=[1] * _SEQUENCES,
        output=FrameOutput.TOKENS,
        emits=[True] * _SEQUENCES,
        data_type=DataType.FLOAT32,
        dimensions=(payload_bytes // 4,),
        payload=os.urandom(payload_bytes),
    )
