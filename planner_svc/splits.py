"""Branch and bound over the times of the slowest server: the inner problem where layers are unlike.

A box of bounds on these times has a bound on the objective, and a split whose cost it is (`relaxation`). Where split
and bound differ because of the closed loop, the quality budget or the deadline, a multiplier is moved; where because of
the slowest server, the box is cut in two at the split's time. A box whose least time is beyond the deadline is empty.
The relaxed counts program gives the first box and multipliers.
"""

import time
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from math import inf

import numpy as np

from planner_svc.assignment import AssignmentProblem, Floats
from planner_svc.milp import Solution, cheapest_assignment
from planner_svc.program_data import ProgramData
from planner_svc.region import Region, region_below
from planner_svc.relaxation import Gaps, Multipliers, Relaxation, Split
from planner_svc.segment_losses import SegmentLosses

#: Multipliers that are tried for a box, at most.
_MAX_TRIALS = 12
#: Differences that are not worth another step, as a share of the objective.
_LEAST_GAP = 1e-9
#: The first price of losses or time that is tried where none is not enough, in objectives of the order of 1 per unit.
_FIRST_PRICE = 0.1


def solve_splits(
    problem: AssignmentProblem, losses: SegmentLosses, *, time_limit_s: float, cutoff_s: float, relative_gap: float
) -> Solution | None:
    """Finds the assignment with the least objective; None if the table of losses would be too large.

    Where both branches of the closed loop hold at once, or splits exceed a quality budget or a deadline by a little or
    stay below it by a little, a difference may be left that no cut closes: the solution is final then, and its bound is
    below its objective.

    Args:
        problem: One that fits (`AssignmentProblem.fits`).
        losses: Of the problem's omega.
        time_limit_s: The best assignment found by then is returned, with the bound proven by then.
        cutoff_s: Assignments that are not below it are of no interest.
        relative_gap: Stop when the bound is this close to the best assignment.
    """
    deadline = time.monotonic() + time_limit_s
    region = region_below(problem, cutoff_s)
    if region is None:
        return Solution(None, cutoff_s)
    if not losses.can_cover(int(region.num_layers[1].max()), region.max_counts.max(axis=0)):
        return None
    unit_s = ProgramData.of(problem).unit_s
    search = _SplitSearch(Relaxation(problem, region, losses), region, cutoff_s / unit_s, relative_gap)
    bound, is_final = search.run(deadline)
    counts = search.best_counts
    return Solution(None if counts is None else cheapest_assignment(counts, problem.omega), bound * unit_s, is_final)


@dataclass(frozen=True, order=True)
class _Box:
    """A part of the search: bound, order of creation, (phases) bounds of the slowest server, and first multipliers."""

    bound: float
    number: int
    low: Floats = field(compare=False)
    high: Floats = field(compare=False)
    multipliers: Multipliers = field(compare=False)


@dataclass
class _Bracket:
    """Where the best value of a multiplier is."""

    low: float
    high: float

    def next(self, tried: float, *, is_too_low: bool) -> float:
        """The value to try next."""
        if is_too_low:
            self.low = tried
        else:
            self.high = tried
        return (self.low + self.high) / 2 if self.high < inf else (2 * self.low or _FIRST_PRICE)


class _Brackets:
    """Where the best multipliers of a box are."""

    def __init__(self) -> None:
        self._shares, self._loss_prices, self._time_prices = _Bracket(0.0, 1.0), _Bracket(0.0, inf), _Bracket(0.0, inf)

    def moved(self, multipliers: Multipliers, gaps: Gaps, split: Split) -> Multipliers:
        """Multipliers that may bound higher: the one with the largest gap is moved towards closing it."""
        if gaps.of_multipliers == gaps.loop:
            share = self._shares.next(multipliers.server_share, is_too_low=split.server >= split.latency)
            return replace(multipliers, server_share=share)
        if gaps.of_multipliers == gaps.budget:
            price = self._loss_prices.next(multipliers.loss_price, is_too_low=gaps.budget == inf)
            return replace(multipliers, loss_price=price)
        price = self._time_prices.next(multipliers.time_price, is_too_low=gaps.deadline == inf)
        return replace(multipliers, time_price=price)


class _SplitSearch:
    """Attributes are `best_counts`: (stages, schemes) of the best split found, or None."""

    def __init__(self, relaxation: Relaxation, region: Region, cutoff: float, relative_gap: float) -> None:
        self._relaxation, self._cutoff, self._relative_gap = relaxation, cutoff, relative_gap
        self._best = inf
        self.best_counts: Floats | None = None
        self._numbers = count()
        low, high = region.slowest
        multipliers = Multipliers(region.server_share, region.loss_price, region.time_price)
        root = _Box(-inf, next(self._numbers), np.maximum(low, relaxation.slowest_link), high, multipliers)
        self._boxes = [root]
        self._left_open = inf
        relaxation.keep_below(root.low, root.high, root.multipliers, cutoff)

    def run(self, deadline: float) -> tuple[float, bool]:
        """Searches until nothing is left to find, or until the deadline; says what is proven, and which it was."""
        while self._boxes and self._boxes[0].bound < self._limit and time.monotonic() < deadline:
            self._examine(heappop(self._boxes))
        bound = min([self._limit, self._left_open, *(box.bound for box in self._boxes)])
        return bound, all(box.bound >= self._limit for box in self._boxes)

    @property
    def _limit(self) -> float:
        """Objectives from here on are of no interest."""
        return min(self._cutoff, self._best * (1 - self._relative_gap))

    def _examine(self, box: _Box) -> None:
        """Bounds a box as high as its multipliers can, and cuts it in two if it may hold a better split."""
        multipliers, best, brackets = box.multipliers, box, _Brackets()
        for trial in count(1):
            bound, split = self._relaxation.bound(box.low, box.high, multipliers)
            if bound > best.bound:
                best = replace(box, bound=bound, multipliers=multipliers)
            if best.bound >= self._limit or split is None:
                return
            self._keep(split)
            gaps = self._relaxation.gaps(box.low, multipliers, split)
            if gaps.deadline == inf and self._relaxation.is_late(box.low, box.high, multipliers):
                return
            if trial == _MAX_TRIALS or gaps.of_multipliers <= max(gaps.slowest.max(), _LEAST_GAP):
                self._cut(best, gaps.slowest, split.slowest)
                return
            multipliers = brackets.moved(multipliers, gaps, split)

    def _cut(self, box: _Box, gaps: Floats, slowest: Floats) -> None:
        """Cuts a box at the (phases) time of a split's slowest server, in the phase with the larger gap."""
        phase = int(gaps.argmax())
        if gaps[phase] <= _LEAST_GAP:
            self._left_open = min(self._left_open, box.bound)
            return
        at = np.arange(2) == phase
        below = np.where(at, np.nextafter(slowest, 0.0), box.high)
        for low, high in ((box.low, below), (np.where(at, slowest, box.low), box.high)):
            heappush(self._boxes, replace(box, number=next(self._numbers), low=low, high=high))

    def _keep(self, split: Split) -> None:
        if split.objective < self._best:
            self._best, self.best_counts = split.objective, self._relaxation.counts(split)
