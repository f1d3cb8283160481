"""Branch and bound over the times of the slowest server: the inner problem where layers are unlike.

Objectives have terms that do not add up over stages: the slowest server of each phase, and the branch of the closed
loop that holds. For bounds LOW <= T_max <= HIGH of both phases, shares SHARE[j] that sum to 1, and a share S of the
server-bound branch between 0 and 1,

    OBJECTIVE >= LOW * OF_SLOWEST + sum_j OF_SUM * T[j] + OF_SLOWEST * SHARE[j] * max(T[j] - LOW, 0) + THETA * Q[j]

with weights OF_SUM and OF_SLOWEST of prefill, and of decoding as S mixes both branches. The right-hand side is a
shortest path over segments with T[j] <= HIGH (`segments`), found in a millisecond. The path is a plan too, so every
bound comes with an incumbent. Where both differ because of the closed loop, S is moved; where because of the slowest
server, the box of bounds is cut in two. The relaxed counts program gives shares to begin with, and a box.
"""

import time
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf

import numpy as np

from planner_svc.assignment import AssignmentProblem, Floats
from planner_svc.milp import Solution, cheapest_assignment
from planner_svc.program_data import ProgramData
from planner_svc.region import Region, region_below
from planner_svc.segment_losses import SegmentLosses
from planner_svc.segments import Paths, segments_of

#: Shares of the server-bound branch that are tried for a box, at most.
_MAX_SHARES = 8
#: Differences that are not worth another cut, as a share of the objective.
_LEAST_GAP = 1e-9


def solve_splits(
    problem: AssignmentProblem, losses: SegmentLosses, *, time_limit_s: float, cutoff_s: float, relative_gap: float
) -> Solution | None:
    """Finds the assignment with the least objective; None if the table of losses would be too large.

    Where both branches of the closed loop hold at once, a difference may be left that no cut closes: the solution is
    final then, and its bound is below its objective.

    Args:
        problem: One that fits (`AssignmentProblem.fits`), without a quality budget and without a deadline.
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
    return _SplitSearch(problem, region, losses, cutoff_s, relative_gap).run(deadline)


@dataclass(frozen=True, order=True)
class _Box:
    """A part of the search: bound, order of creation, (phases) bounds of the slowest server, and where S begins."""

    bound: float
    number: int
    low: Floats = field(compare=False)
    high: Floats = field(compare=False)
    server_share: float = field(compare=False)


@dataclass(frozen=True)
class _Price:
    """What a path comes to: (phases) time of the slowest server, and both branches of the closed loop."""

    slowest: Floats
    server: float
    latency: float

    @property
    def end(self) -> float:
        """When decoding ends."""
        return max(self.server, self.latency)


class _SplitSearch:
    def __init__(
        self, problem: AssignmentProblem, region: Region, losses: SegmentLosses, cutoff_s: float, relative_gap: float
    ) -> None:
        self._problem, self._region = problem, region
        self._data = data = ProgramData.of(problem)
        self._links = np.array([data.link_prefill, data.link_decode])
        self._cutoff, self._relative_gap = cutoff_s / data.unit_s, relative_gap
        self._paths = Paths(segments_of(problem, data, region, losses), problem.num_layers)
        self._best = inf
        self._best_counts: Floats | None = None
        self._boxes: list[_Box] = []
        self._numbers = count()
        self._left_open = inf

    def run(self, deadline: float) -> Solution:
        """Searches until nothing is left to find, or until the deadline."""
        low, high = self._region.slowest
        low = np.maximum(low, self._links.max(axis=1))
        root = _Box(-inf, next(self._numbers), low, high, self._region.server_share)
        self._paths = self._paths.only_below(
            self._costs(root, root.server_share), self._limit - self._fixed(root, root.server_share)
        )
        self._boxes = [root]
        while self._boxes and self._boxes[0].bound < self._limit and time.monotonic() < deadline:
            self._examine(heappop(self._boxes))
        bound = min([self._limit, self._left_open, *(box.bound for box in self._boxes)])
        is_final = all(box.bound >= self._limit for box in self._boxes)
        found = None if self._best_counts is None else cheapest_assignment(self._best_counts, self._problem.omega)
        return Solution(found, bound * self._data.unit_s, is_final)

    @property
    def _limit(self) -> float:
        """Objectives from here on are of no interest."""
        return min(self._cutoff, self._best * (1 - self._relative_gap))

    def _examine(self, box: _Box) -> None:
        """Bounds a box, moving the share of the server-bound branch; cuts it in two if it may hold a better plan."""
        bound, share, best_share = box.bound, box.server_share, box.server_share
        shares = [0.0, 1.0]
        for _ in range(_MAX_SHARES):
            value, path = self._paths.shortest(self._costs(box, share))
            value += self._fixed(box, share)
            if value > bound:
                bound, best_share = value, share
            if bound >= self._limit:
                return
            price = self._keep(path)
            loop_gap = price.end - share * price.server - (1 - share) * price.latency
            slowest_gaps = self._slowest_gaps(box, share, path, price)
            if slowest_gaps.max() >= loop_gap or loop_gap <= _LEAST_GAP:
                break
            shares[int(price.server < price.latency)] = share
            share = sum(shares) / 2
        phase = int(slowest_gaps.argmax())
        if slowest_gaps[phase] <= _LEAST_GAP:
            self._left_open = min(self._left_open, bound)
            return
        at = np.arange(2) == phase
        below = np.where(at, np.nextafter(price.slowest, 0.0), box.high)
        for low, high in ((box.low, below), (np.where(at, price.slowest, box.low), box.high)):
            heappush(self._boxes, _Box(bound, next(self._numbers), low, high, best_share))

    def _weights(self, server_share: float) -> tuple[Floats, Floats]:
        """(phases) what the sum and the slowest server count for, the loop's branches mixed."""
        data = self._data
        loop = server_share * data.server_weights + (1 - server_share) * data.latency_weights
        of_sum, of_slowest = np.array([data.prefill_weights, loop]).T
        return of_sum, of_slowest

    def _fixed(self, box: _Box, server_share: float) -> float:
        """What all paths of a box have in common."""
        of_sum, of_slowest = self._weights(server_share)
        return float(of_slowest @ box.low + of_sum @ self._links.sum(axis=1))

    def _costs(self, box: _Box, server_share: float) -> list[Floats]:
        """For each stage, (segments) what each adds to the bound; infinite if it is slower than the box allows."""
        of_sum, of_slowest = self._weights(server_share)
        low, high = box.low[:, None], box.high[:, None]
        costs = []
        for segments, shares in zip(self._paths.stages, self._region.shares.T, strict=True):
            excess = np.maximum(segments.times - low, 0.0)
            cost = of_sum @ segments.times + (of_slowest * shares) @ excess + segments.loss
            costs.append(np.where((segments.times > high).any(axis=0), inf, cost))
        return costs

    def _keep(self, path: list[int]) -> _Price:
        """The price of a path, which becomes the incumbent if it is the best so far."""
        times, loss = (
            self._times(path),
            sum(segments.loss[row] for segments, row in zip(self._paths.stages, path, strict=True)),
        )
        data = self._data
        total = times.sum(axis=1) + self._links.sum(axis=1)
        slowest = np.maximum(times.max(axis=1), self._links.max(axis=1))
        server, latency = (weights @ (total[1], slowest[1]) for weights in (data.server_weights, data.latency_weights))
        objective = data.prefill_weights @ (total[0], slowest[0]) + max(server, latency) + loss
        if objective < self._best:
            self._best = objective
            self._best_counts = np.array(
                [segments.counts[row] for segments, row in zip(self._paths.stages, path, strict=True)]
            )
        return _Price(slowest, server, latency)

    def _slowest_gaps(self, box: _Box, server_share: float, path: list[int], price: _Price) -> Floats:
        """(phases) what the bound lacks of the slowest server's time on this path."""
        of_slowest = self._weights(server_share)[1]
        excess = np.maximum(self._times(path) - box.low[:, None], 0.0)
        return np.asarray(of_slowest * (price.slowest - box.low - (self._region.shares * excess).sum(axis=1)))

    def _times(self, path: list[int]) -> Floats:
        """(phases, stages) times of the stages on a path."""
        return np.column_stack([segments.times[:, row] for segments, row in zip(self._paths.stages, path, strict=True)])
