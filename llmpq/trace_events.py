"""A batch's frames as trace events, the JSON that Perfetto (ui.perfetto.dev) and chrome://tracing show.

The format is Chrome's "Trace Event Format": `X` is a slice of a track, `b` and `e` a span that may overlap others, `s`,
`t` and `f` the arrows of a flow, `M` the name of a track; `ts` and `dur` are microseconds.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from llmpq.trace import FrameTrace, aligned, arrived_unix_ns, clock_offsets_ns, ended_unix_ns

#: Process of the coordinator; that of stage n is n + 1.
_COORDINATOR = 0
_TRACK = 1


def trace_document(frames: Sequence[FrameTrace], device_ids: Sequence[str]) -> dict[str, Any]:
    """One process a stage, whose track is full: computing, waiting for input, waiting for output.

    All times are by the coordinator's clock, from the moment the first frame was sent; how far each stage's clock was
    moved for that is in `otherData`.

    Args:
        frames: The frames of a batch, times as they were taken.
        device_ids: Name of each stage.
    """
    origin_ns = min((frame.sent_unix_ns for frame in frames), default=0)
    offsets = clock_offsets_ns(frames)
    frames = aligned(frames)
    events = [*_names(device_ids), *_in_flight(frames, origin_ns)]
    for stage in range(len(device_ids)):
        events += _stage_slices(frames, stage, origin_ns)
    events += _flows(frames, origin_ns)
    moved = {device: -offset for device, offset in zip(device_ids, offsets, strict=False)}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"clocks_moved_ns": moved}}


def _names(device_ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    for process, name in enumerate(["coordinator", *(f"stage {n}: {device}" for n, device in enumerate(device_ids))]):
        yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": process}}
        if process:
            yield {"ph": "M", "name": "thread_name", "pid": process, "tid": _TRACK, "args": {"name": "compute"}}


def _in_flight(frames: Sequence[FrameTrace], origin_ns: int) -> Iterator[dict[str, Any]]:
    for frame in frames:
        span = {"name": _phase(frame), "cat": "in flight", "id": frame.frame_id, "pid": _COORDINATOR, "tid": 0}
        yield span | {"ph": "b", "ts": _us(frame.sent_unix_ns - origin_ns), "args": _args(frame)}
        yield span | {"ph": "e", "ts": _us(frame.received_unix_ns - origin_ns)}


def _stage_slices(frames: Sequence[FrameTrace], stage: int, origin_ns: int) -> Iterator[dict[str, Any]]:
    """The track of a stage. A slice ends where the next one begins: stamps of two clocks may cross by microseconds."""
    ordered = sorted(frames, key=lambda frame: frame.timings[stage].start_unix_ns)
    for frame, following in pairwise([*ordered, None]):
        assert frame is not None  # noqa: S101 only the last one has none after it
        timing = frame.timings[stage]
        begin, end = timing.start_unix_ns, ended_unix_ns(timing)
        until = following.timings[stage].start_unix_ns if following else end
        waited = {"waited_ms": timing.wait_ns / 1e6}
        yield _slice(stage, _phase(frame), begin - origin_ns, min(end, until) - origin_ns, _args(frame) | waited)
        if following and until > end:
            arrived = min(max(arrived_unix_ns(following.timings[stage]), end), until)
            for name, since, to in (("waiting for input", end, arrived), ("waiting for output", arrived, until)):
                if to > since:
                    yield _slice(stage, name, since - origin_ns, to - origin_ns, {"next_frame": following.frame_id})


def _slice(stage: int, name: str, begin_ns: int, end_ns: int, args: dict[str, Any]) -> dict[str, Any]:
    times = {"ts": _us(begin_ns), "dur": _us(end_ns - begin_ns)}
    return {"ph": "X", "name": name, "cat": "stage", "pid": stage + 1, "tid": _TRACK, "args": args} | times


def _flows(frames: Sequence[FrameTrace], origin_ns: int) -> Iterator[dict[str, Any]]:
    """An arrow from each stage's slice to the next one's, of the same frame."""
    for frame in frames:
        last = len(frame.timings) - 1
        for stage, timing in enumerate(frame.timings if last else ()):
            kind = {"ph": "s"} if not stage else {"ph": "f", "bp": "e"} if stage == last else {"ph": "t"}
            place = {"pid": stage + 1, "tid": _TRACK, "ts": _us(timing.start_unix_ns - origin_ns)}
            yield {"name": "frame", "cat": "wire", "id": frame.frame_id} | place | kind


def _phase(frame: FrameTrace) -> str:
    return frame.phase.removeprefix("PHASE_").lower()


def _args(frame: FrameTrace) -> dict[str, Any]:
    return {
        "frame": frame.frame_id,
        "sequences": frame.num_sequences,
        "rows": frame.num_rows,
        "results": frame.num_results,
    }


def _us(nanoseconds: int) -> float:
    return nanoseconds / 1e3
