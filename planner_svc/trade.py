"""What quality costs in throughput: the plans that no other one beats in both."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from llmpq.comparison import TradePoint
from llmpq.errors import PreconditionError
from llmpq.plan import Plan, PlanningProblem

#: Quality budgets that are planned for, where nobody says how many.
DEFAULT_POINTS = 8
#: A unit of omega in seconds that no time outweighs: with it, a plan has the least loss that fits.
_PRICELESS_S = 1e9


def trade_quality(
    problem: PlanningProblem, num_points: int, create: Callable[[PlanningProblem], Plan]
) -> Iterator[Plan]:
    """Plans for budgets from the least loss that fits to the loss of the fastest plan (the epsilon-constraint method).

    Budgets are dense where losses are small: their distances grow from one to the next.

    Raises:
        PreconditionError: Nothing fits.
    """
    least = create(_with_quality(problem, weight=_PRICELESS_S))
    fastest = create(_with_quality(problem, weight=0.0))
    yield least
    low, high = least.estimate.quality_loss, fastest.estimate.quality_loss
    for number in range(1, num_points - 1):
        budget = low + (high - low) * (number / (num_points - 1)) ** 2
        if high > low:
            try:
                yield create(_with_quality(problem, budget=budget))
            except PreconditionError:  # not found in time
                continue
    yield fastest


def unbeaten(points: Iterable[TradePoint]) -> list[TradePoint]:
    """The points that no other one beats in both, from the least loss on."""
    kept: list[TradePoint] = []
    ascending = sorted(points, key=lambda point: (point.plan.estimate.quality_loss, -point.throughput_tokens_per_s))
    for point in ascending:
        if not kept or point.throughput_tokens_per_s > kept[-1].throughput_tokens_per_s:
            kept.append(point)
    return kept


def _with_quality(
    problem: PlanningProblem, *, weight: float | None = None, budget: float | None = None
) -> PlanningProblem:
    return replace(problem, options=replace(problem.options, quality_weight=weight, quality_budget=budget))
