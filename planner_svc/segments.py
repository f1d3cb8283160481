"""Splits as paths: each stage takes a segment of layers from where the stage before it ended.

With the times of the slowest server between two bounds, what is left of the objective adds up over the segments, and
the best split is a shortest path from layer 0 to the last one. `splits` narrows the bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner_svc.assignment import AssignmentProblem, Floats
from planner_svc.program_data import ProgramData
from planner_svc.region import Region
from planner_svc.segment_losses import SegmentLosses

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Segments:
    """Segments that a stage may take, sorted by where they end.

    Attributes:
        start, end: (segments) first layer, and the one after the last.
        times: (phases, segments) of the stage with this segment, in the units of `ProgramData`.
        loss: (segments) least sum of omega.
        counts: (segments, schemes) layers at each scheme.
    """

    start: Integers
    end: Integers
    times: Floats
    loss: Floats
    counts: Integers

    def only(self, rows: NDArray[np.bool_] | Integers) -> "Segments":
        """Some of them."""
        return Segments(self.start[rows], self.end[rows], self.times[:, rows], self.loss[rows], self.counts[rows])


def segments_of(problem: AssignmentProblem, data: ProgramData, region: Region, losses: SegmentLosses) -> list[Segments]:
    """For each stage, its segments within the region and the memory."""
    return [_of_stage(problem, data, region, losses, stage) for stage in range(problem.num_stages)]


def _of_stage(
    problem: AssignmentProblem, data: ProgramData, region: Region, losses: SegmentLosses, stage: int
) -> Segments:
    columns = slice(stage * problem.num_schemes, (stage + 1) * problem.num_schemes)
    layer_times = np.array([data.layer_prefill[columns], data.layer_decode[columns]])
    outside = np.array([[data.outside_prefill[stage]], [data.outside_decode[stage]]])
    (low_start, low_end), (high_start, high_end) = region.cuts[:, stage : stage + 2]
    parts = []
    for length in range(region.num_layers[0, stage], region.num_layers[1, stage] + 1):
        counts = losses.counts[length]
        times: Floats = outside + layer_times @ counts.T
        can_be = (counts <= region.max_counts[stage]).all(axis=1) & (times <= region.slowest[1][:, None]).all(axis=0)
        can_be &= counts @ problem.layer_bytes[stage] <= problem.capacity_bytes[stage]
        starts = np.arange(max(low_start, low_end - length), min(high_start, high_end - length) + 1)
        row, start = np.repeat(np.flatnonzero(can_be), len(starts)), np.tile(starts, int(can_be.sum()))
        loss = losses.losses[length][row, start]
        parts.append(Segments(start, start + length, times[:, row], loss, counts[row]))
    found = _joined(parts, problem.num_schemes)
    found = found.only(np.isfinite(found.loss))
    return found.only(np.argsort(found.end, kind="stable"))


def _joined(parts: Sequence[Segments], num_schemes: int) -> Segments:
    none = np.zeros(0, dtype=np.int64)
    parts = (Segments(none, none, np.zeros((2, 0)), np.zeros(0), np.zeros((0, num_schemes), dtype=np.int64)), *parts)
    return Segments(
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.end for part in parts]),
        np.concatenate([part.times for part in parts], axis=1),
        np.concatenate([part.loss for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )


class Paths:
    """All splits that can be put together of segments.

    Args:
        stages: The segments of each stage.
        num_layers: Where a path ends.
    """

    def __init__(self, stages: Sequence[Segments], num_layers: int) -> None:
        self.stages = stages
        self._num_layers = num_layers
        self._ends = [np.unique(segments.end, return_index=True) for segments in stages]

    def shortest(self, costs: Sequence[Floats]) -> tuple[float, list[int]]:
        """Least sum of costs, and the segment of each stage; infinite and empty if there is no path.

        Args:
            costs: For each stage, (segments) what each costs; infinite where it may not be taken.
        """
        reached = self._reached(costs)
        at, path = self._num_layers, []
        if reached[-1][at] == np.inf:
            return np.inf, []
        for segments, cost, before in zip(self.stages[::-1], costs[::-1], reached[-2::-1], strict=True):
            first, end = np.searchsorted(segments.end, (at, at + 1))
            row = int(first + (before[segments.start[first:end]] + cost[first:end]).argmin())
            path.append(row)
            at = int(segments.start[row])
        return float(reached[-1][-1]), path[::-1]

    def only_below(self, costs: Sequence[Floats], most: float) -> "Paths":
        """Without the segments through which no path costs less than `most`."""
        reached = self._reached(costs)
        left = np.full(self._num_layers + 1, np.inf)
        left[-1] = 0.0
        kept = []
        for segments, cost, before in zip(self.stages[::-1], costs[::-1], reached[-2::-1], strict=True):
            onwards = cost + left[segments.end]
            kept.append(segments.only(before[segments.start] + onwards < most))
            left = np.full_like(left, np.inf)
            np.minimum.at(left, segments.start, onwards)
        return Paths(kept[::-1], self._num_layers)

    def _reached(self, costs: Sequence[Floats]) -> list[Floats]:
        """For each number of stages, (layers + 1) the least that they cost when they end at each layer."""
        reached = [np.full(self._num_layers + 1, np.inf)]
        reached[0][0] = 0.0
        for segments, cost, (ends, firsts) in zip(self.stages, costs, self._ends, strict=True):
            reached.append(np.full_like(reached[0], np.inf))
            if len(ends):
                reached[-1][ends] = np.minimum.reduceat(reached[-2][segments.start] + cost, firsts)
        return reached
