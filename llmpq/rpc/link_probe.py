"""How long a frame takes to another process: measured with frames that are acknowledged and dropped."""

import asyncio
import time
from statistics import median

import numpy as np

from llmpq.device import LinkProfile, Phase
from llmpq.frames import DataType, Frame
from llmpq.rpc.data_plane import ForwardStream

#: Named by frames that only measure the way: whoever receives one acknowledges it and forgets it.
PROBE_DEPLOYMENT = "llmpq.link-probe"

#: Bytes of the payloads, from a token to a prefill micro-batch.
_PAYLOAD_BYTES = (4, 2**14, 2**17, 2**19, 2**20)
_NUM_RUNS = 7
#: Time between two of them. Frames of a run follow one another like this, and what computes meanwhile takes the caches.
_PAUSE_S = 0.005


async def measure_link(sender_id: str, address: str) -> LinkProfile:
    """Fits latency + bytes / bandwidth (LLM-PQ, section 4.1) to round trips through the data plane.

    An acknowledgement is as short as a token, so half of the shortest round trip is the way there. The time includes
    what the receiver needs to check a frame and the sender to make one.

    Args:
        sender_id: This device; empty for the coordinator.
        address: host:port of the receiver.

    Raises:
        MeshError: The receiver cannot be reached, or refuses frames.
    """
    async with ForwardStream(address) as stream:
        trips_s = [await _round_trip_s(stream, num_bytes) for num_bytes in _PAYLOAD_BYTES]
    return fit_link(sender_id, _PAYLOAD_BYTES, trips_s)


def fit_link(sender_id: str, payload_bytes: tuple[int, ...], trips_s: list[float]) -> LinkProfile:
    """Latency from the shortest round trip; bandwidth by least squares of what longer ones add, in shares."""
    shortest_s = min(trips_s)
    added_s = np.array(trips_s) - shortest_s
    sizes, weights = np.array(payload_bytes, dtype=float), 1 / np.array(trips_s)
    seconds_per_byte = float((sizes * added_s * weights**2).sum() / (sizes**2 * weights**2).sum())
    return LinkProfile(
        sender_id,
        latency_ns=round(shortest_s / 2 * 1e9),
        bytes_per_s=round(1 / seconds_per_byte) if seconds_per_byte > 0 else 0,
    )


async def _round_trip_s(stream: ForwardStream, num_bytes: int) -> float:
    payload = bytes(num_bytes)
    frame = Frame(
        deployment_id=PROBE_DEPLOYMENT,
        frame_id=0,
        phase=Phase.DECODE,
        slots=[0],
        starts=[0],
        counts=[1],
        data_type=DataType.INT32,
        dimensions=(num_bytes // 4,),
        payload=payload,
    )
    durations = []
    for _ in range(_NUM_RUNS):
        await asyncio.sleep(_PAUSE_S)
        started = time.perf_counter()
        await stream.send(frame, is_asking=True)
        await stream.acknowledged()
        durations.append(time.perf_counter() - started)
    return median(durations)
