"""What became of each frame of a batch, and how its stages spent the time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from llmpq.device import Phase
from llmpq.frames import StageTiming


@dataclass(frozen=True)
class FrameTrace:
    """Mirror of the message `FrameTrace`; see there for each field."""

    frame_id: int
    phase: Phase
    num_sequences: int
    num_rows: int
    num_results: int
    sent_unix_ns: int
    received_unix_ns: int
    timings: tuple[StageTiming, ...] = ()


def arrived_unix_ns(timing: StageTiming) -> int:
    """When a frame arrived at a stage, by the stage's clock."""
    return timing.start_unix_ns - timing.wait_ns


def ended_unix_ns(timing: StageTiming) -> int:
    """When a stage had computed a frame, by the stage's clock."""
    return timing.start_unix_ns + timing.compute_ns


def transits_ns(frame: FrameTrace) -> list[int]:
    """Time of a frame on each hop, from the coordinator over the stages and back, as the unaligned clocks have it."""
    left = [frame.sent_unix_ns, *map(ended_unix_ns, frame.timings)]
    arrived = [*map(arrived_unix_ns, frame.timings), frame.received_unix_ns]
    return [at - since for since, at in zip(left, arrived, strict=True)]


def clock_offsets_ns(frames: Sequence[FrameTrace]) -> list[int]:
    """How far each stage's clock is ahead of the coordinator's, as well as the frames tell.

    A frame goes in a ring, so the sum of its transits is free of offsets. No offset is assumed where none is needed:
    if no frame seems to arrive before it was sent, the clocks agree within the transits. Otherwise the quickest frame
    of each hop is taken to need an equal share of the ring's sum, which is what NTP assumes of there and back. It is
    wrong by at most that sum.
    """
    quickest = [min(hop) for hop in zip(*map(transits_ns, frames), strict=True)]
    num_stages = max(len(quickest) - 1, 0)
    if min(quickest, default=0) >= 0:
        return [0] * num_stages
    share = sum(quickest) / len(quickest)
    offsets, ahead = [], 0.0
    for seeming in quickest[:-1]:
        ahead += seeming - share
        offsets.append(round(ahead))
    return offsets


def aligned(frames: Sequence[FrameTrace]) -> list[FrameTrace]:
    """The frames with all times by the coordinator's clock."""
    offsets = clock_offsets_ns(frames)
    return [
        replace(
            frame,
            timings=tuple(
                replace(timing, start_unix_ns=timing.start_unix_ns - offset)
                for timing, offset in zip(frame.timings, offsets, strict=True)
            ),
        )
        for frame in frames
    ]


@dataclass(frozen=True)
class StageTime:
    """How a stage spent the time of a batch, from its first arrival to the end of its last frame; nanoseconds.

    Attributes:
        prefill: Computing prefill frames.
        decode: Computing decode frames.
        input: No frame was there to compute.
        output: A frame was there, but the stage had not yet sent the one before, or taken this one up.
    """

    prefill: int = 0
    decode: int = 0
    input: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.prefill + self.decode + self.input + self.output


@dataclass(frozen=True)
class Gap:
    """Time between two frames in which a stage did not compute, by the coordinator's clock.

    Attributes:
        since: When the frame before was computed.
        arrived: When the next one was there; not before `since`.
        until: When it was taken up.
    """

    since: int
    arrived: int
    until: int


def gaps(timings: Sequence[StageTiming]) -> list[Gap]:
    """What lies between the frames of one stage, which are in the order of their starts."""
    found = []
    for before, after in pairwise(timings):
        since, until = ended_unix_ns(before), after.start_unix_ns
        if until > since:
            found.append(Gap(since, min(max(arrived_unix_ns(after), since), until), until))
    return found


def timings_of_stage(frames: Sequence[FrameTrace], stage: int) -> list[StageTiming]:
    """The times of one stage, in the order in which it computed."""
    return sorted((frame.timings[stage] for frame in frames), key=lambda timing: timing.start_unix_ns)


def stage_times(frames: Sequence[FrameTrace]) -> list[StageTime]:
    """How each stage spent the time."""
    num_stages = len(frames[0].timings) if frames else 0
    return [_stage_time(frames, stage) for stage in range(num_stages)]


def _stage_time(frames: Sequence[FrameTrace], stage: int) -> StageTime:
    computed = dict.fromkeys(Phase, 0)
    for frame in frames:
        computed[frame.phase] += frame.timings[stage].compute_ns
    between = gaps(timings_of_stage(frames, stage))
    return StageTime(
        prefill=computed[Phase.PREFILL],
        decode=computed[Phase.DECODE],
        input=sum(gap.arrived - gap.since for gap in between),
        output=sum(gap.until - gap.arrived for gap in between),
    )
