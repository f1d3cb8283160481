"""What a box of bounds on the slowest server leaves of the objective: a sum over segments, and so a shortest path.

Objectives have terms that do not add up over stages: the slowest server of each phase, the branch of the closed loop
that holds, a quality budget, and a deadline. For bounds LOW <= T_max <= HIGH of both phases, shares SHARE[j] that sum
to 1, a share S of the server-bound branch between 0 and 1, a price L >= 0 of losses under a budget, and a price
P >= 0 of time under a deadline,

    OBJECTIVE >= (1 + P) * LOW * OF_SLOWEST - L * BUDGET - P * DEADLINE
               + sum_j (1 + P) * (OF_SUM * T[j] + OF_SLOWEST * SHARE[j] * max(T[j] - LOW, 0)) + (THETA + L) * Q[j]

with weights OF_SUM and OF_SLOWEST of prefill, and of decoding as S mixes both branches. The right-hand side is least on
a shortest path over segments with T[j] <= HIGH. The path is a split too: what it costs in truth is an incumbent, and
the differences say which bound or multiplier to move.
"""

from dataclasses import dataclass, replace
from math import inf

import numpy as np

from planner_svc.assignment import AssignmentProblem, Floats
from planner_svc.program_data import ProgramData
from planner_svc.region import Region
from planner_svc.segment_losses import SegmentLosses
from planner_svc.segments import Paths, segments_of


@dataclass(frozen=True)
class Multipliers:
    """S, L and P above."""

    server_share: float
    loss_price: float
    time_price: float


@dataclass(frozen=True)
class Split:
    """A path, and what it comes to in the units of `ProgramData`.

    Attributes:
        rows: The segment of each stage.
        times: (phases, stages).
        slowest: (phases) time of the slowest server.
        server, latency: Both branches of the closed loop.
        time: Of the whole batch.
        loss: Sum of omega.
        objective: Infinite if the loss is over the budget, or the time over the deadline.
    """

    rows: tuple[int, ...]
    times: Floats
    slowest: Floats
    server: float
    latency: float
    time: float
    loss: float
    objective: float


@dataclass(frozen=True)
class Gaps:
    """Where a bound lacks something on the path that it is the cost of.

    Attributes:
        slowest: (phases) because of the slowest server.
        loop: Because of the branch of the closed loop.
        budget, deadline: Because the path stays below the limit; infinite if it is over it.
    """

    slowest: Floats
    loop: float
    budget: float
    deadline: float

    @property
    def of_multipliers(self) -> float:
        """The largest that other multipliers may close."""
        return max(self.loop, self.budget, self.deadline)


class Relaxation:
    """The bounds of one inner problem.

    Args:
        problem: The inner problem.
        region: Where to look.
        losses: Of its omega, large enough for the region.
    """

    def __init__(self, problem: AssignmentProblem, region: Region, losses: SegmentLosses) -> None:
        self._data = data = ProgramData.of(problem)
        self._budget = inf if problem.quality_budget is None else problem.quality_budget
        self._shares = region.shares
        self._paths = Paths(segments_of(problem, data, region, losses), problem.num_layers)
        self._links = np.array([data.link_prefill, data.link_decode])
        self.slowest_link = self._links.max(axis=1)

    def keep_below(self, low: Floats, high: Floats, multipliers: Multipliers, limit: float) -> None:
        """Forgets the segments that no split with a bound below `limit` has."""
        costs = self._costs(low, high, multipliers)
        self._paths = self._paths.only_below(costs, limit - self._fixed(low, multipliers))

    def bound(self, low: Floats, high: Floats, multipliers: Multipliers) -> tuple[float, Split | None]:
        """The bound of a box, and the split that it is the cost of; infinite and None if there is none.

        Args:
            low: (phases) least time of the slowest server.
            high: (phases) longest time of the slowest server.
            multipliers: Any make a bound.
        """
        value, rows = self._paths.shortest(self._costs(low, high, multipliers))
        if not rows:
            return inf, None
        return value + self._fixed(low, multipliers), self._split(rows)

    def is_late(self, low: Floats, high: Floats, multipliers: Multipliers) -> bool:
        """Whether nothing in a box meets the deadline, by a bound on the time alone."""
        free = replace(multipliers, loss_price=0.0, time_price=0.0)
        least, _ = self._paths.shortest(self._costs(low, high, free, of_loss=0.0))
        return least + self._fixed(low, free) > self._data.deadline

    def gaps(self, low: Floats, multipliers: Multipliers, split: Split) -> Gaps:
        """What the bound lacks on its split."""
        share = multipliers.server_share
        excess = np.maximum(split.times - low[:, None], 0.0)
        _, of_slowest = self._weights(multipliers)
        slowest = of_slowest * (split.slowest - low - (self._shares * excess).sum(axis=1))
        loop = max(split.server, split.latency) - share * split.server - (1 - share) * split.latency
        return Gaps(
            slowest,
            (1 + multipliers.time_price) * loop,
            _slack(multipliers.loss_price, self._budget - split.loss),
            _slack(multipliers.time_price, self._data.deadline - split.time),
        )

    def counts(self, split: Split) -> Floats:
        """(stages, schemes) layers of each stage at each scheme."""
        stages = zip(self._paths.stages, split.rows, strict=True)
        return np.array([segments.counts[row] for segments, row in stages], dtype=np.float64)

    def _split(self, rows: list[int]) -> Split:
        data, stages = self._data, list(zip(self._paths.stages, rows, strict=True))
        times = np.column_stack([segments.times[:, row] for segments, row in stages])
        loss = float(sum(segments.loss[row] for segments, row in stages))
        total = times.sum(axis=1) + self._links.sum(axis=1)
        slowest = np.maximum(times.max(axis=1), self.slowest_link)
        server, latency = (weights @ (total[1], slowest[1]) for weights in (data.server_weights, data.latency_weights))
        time = data.prefill_weights @ (total[0], slowest[0]) + max(server, latency)
        is_within = loss <= self._budget and time <= data.deadline
        objective = time + data.theta * loss if is_within else inf
        return Split(tuple(rows), times, slowest, server, latency, time, loss, objective)

    def _weights(self, multipliers: Multipliers) -> tuple[Floats, Floats]:
        """(phases) what the sum and the slowest server count for, the loop's branches mixed."""
        data, share = self._data, multipliers.server_share
        loop = share * data.server_weights + (1 - share) * data.latency_weights
        of_sum, of_slowest = (1 + multipliers.time_price) * np.array([data.prefill_weights, loop]).T
        return of_sum, of_slowest

    def _fixed(self, low: Floats, multipliers: Multipliers) -> float:
        """What all paths have in common."""
        of_sum, of_slowest = self._weights(multipliers)
        fixed = float(of_slowest @ low + of_sum @ self._links.sum(axis=1))
        limits = (multipliers.loss_price, self._budget), (multipliers.time_price, self._data.deadline)
        return fixed - sum(price * limit for price, limit in limits if price)

    def _costs(
        self, low: Floats, high: Floats, multipliers: Multipliers, *, of_loss: float | None = None
    ) -> list[Floats]:
        """For each stage, (segments) what each adds to the bound; infinite if it is slower than the box allows."""
        of_sum, of_slowest = self._weights(multipliers)
        of_loss = self._data.theta + multipliers.loss_price if of_loss is None else of_loss
        costs = []
        for segments, shares in zip(self._paths.stages, self._shares.T, strict=True):
            excess = np.maximum(segments.times - low[:, None], 0.0)
            cost = of_sum @ segments.times + (of_slowest * shares) @ excess + of_loss * segments.loss
            costs.append(np.where((segments.times > high[:, None]).any(axis=0), inf, cost))
        return costs


def _slack(price: float, left: float) -> float:
    """What a price counts for that is not used up; infinite where the limit is missed."""
    if left < 0:
        return inf
    return price * left if price else 0.0
