"""The planner: a pure function of the problem, its settings aside."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmpq.errors import PreconditionError
from llmpq.plan import Plan, PlanningProblem
from planner_svc.cost import CostModel
from planner_svc.search import OnProgress, Progress
from planner_svc.space import SearchSpace
from planner_svc.strategies import DEFAULT_STRATEGY, STRATEGIES
from planner_svc.validation import check_plan, check_problem, check_strategy


@dataclass(frozen=True)
class StrategyResult:
    """Mirror of the message `StrategyResult`; see there for each field."""

    strategy: str
    plan: Plan | None
    error: str = ""


def _ignore(_progress: Progress) -> None:
    """For callers that do not watch."""


class Planner:
    """Makes, prices and compares plans.

    Args:
        time_limit_s: Time a search may take where the problem sets none.
        max_payload_bytes: Most bytes of one frame on the data plane.
    """

    def __init__(self, time_limit_s: float, max_payload_bytes: int) -> None:
        self._time_limit_s = time_limit_s
        self._max_payload_bytes = max_payload_bytes

    def create(self, problem: PlanningProblem, on_progress: OnProgress = _ignore) -> Plan:
        """Makes a plan by the strategy that the options name.

        Raises:
            InvalidInputError: The problem is malformed.
            PreconditionError: No plan fits the memory or the quality budget.
        """
        started = time.monotonic()
        check_problem(problem, self._max_payload_bytes)
        check_strategy(problem.options.strategy, STRATEGIES, "problem.options.strategy")
        strategy = STRATEGIES[problem.options.strategy or DEFAULT_STRATEGY]
        deadline = started + (problem.options.time_limit_s or self._time_limit_s)
        plan = strategy(SearchSpace(self._cost(problem)), deadline, on_progress)
        solve_s = time.monotonic() - started
        return replace(plan, estimate=replace(plan.estimate, solve_s=solve_s))

    def evaluate(self, problem: PlanningProblem, plan: Plan) -> Plan:
        """Fills in the predicted figures and the hash of a plan.

        Raises:
            InvalidInputError: The problem or the plan is malformed.
            DoesNotFitError: The plan takes more memory than a device has.
        """
        check_problem(problem, self._max_payload_bytes)
        check_plan(problem, plan)
        return self._cost(problem).evaluate(plan)

    def compare(
        self, problem: PlanningProblem, strategies: Sequence[str], on_progress: OnProgress = _ignore
    ) -> list[StrategyResult]:
        """Makes a plan by each strategy; none named means all.

        Raises:
            InvalidInputError: The problem is malformed, or there is no such strategy.
        """
        for number, name in enumerate(strategies):
            check_strategy(name or "''", STRATEGIES, f"strategies[{number}]")
        return [self._result(problem, name, on_progress) for name in strategies or STRATEGIES]

    def _result(self, problem: PlanningProblem, strategy: str, on_progress: OnProgress) -> StrategyResult:
        options = replace(problem.options, strategy=strategy)
        try:
            return StrategyResult(strategy, self.create(replace(problem, options=options), on_progress))
        except PreconditionError as error:
            return StrategyResult(strategy, None, error.message)

    def _cost(self, problem: PlanningProblem) -> CostModel:
        return CostModel(problem, self._max_payload_bytes)
