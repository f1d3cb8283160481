"""The planner: a pure function of the problem, its settings aside."""

import time
from collections.abc import Sequence
from dataclasses import replace

from llmpq.comparison import Explanation, StrategyResult, TradePoint
from llmpq.errors import PreconditionError
from llmpq.plan import OFFLOADING_STRATEGIES, Plan, PlanningProblem
from planner_svc.cost import CostModel
from planner_svc.explain import explain_plan
from planner_svc.search import OnProgress, Progress
from planner_svc.simulator import MAX_OUTPUT_TOKENS, simulation_of
from planner_svc.space import SearchSpace
from planner_svc.strategies import DEFAULT_STRATEGY, STRATEGIES
from planner_svc.strategies.flexgen import flexgen
from planner_svc.trade import DEFAULT_POINTS, trade_quality, unbeaten
from planner_svc.validation import check_plan, check_points, check_problem, check_strategy


def _ignore(_progress: Progress) -> None:
    """For callers that do not watch."""


class Planner:
    """Makes, prices and compares plans.

    Args:
        time_limit_s: Time a search may take where the problem sets none.
    """

    def __init__(self, time_limit_s: float) -> None:
        self._time_limit_s = time_limit_s

    def create(self, problem: PlanningProblem, on_progress: OnProgress = _ignore) -> Plan:
        """Makes a plan by the strategy that the options name.

        Raises:
            InvalidInputError: The problem is malformed.
            PreconditionError: No plan fits the memory or the quality budget.
        """
        started = time.monotonic()
        check_problem(problem)
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
        check_problem(problem)
        check_plan(problem, plan)
        options = replace(problem.options, has_int8_activations=plan.has_int8_activations)
        return self._cost(replace(problem, options=options)).evaluate(plan)

    def compare(
        self, problem: PlanningProblem, strategies: Sequence[str], on_progress: OnProgress = _ignore
    ) -> list[StrategyResult]:
        """Makes a plan by each strategy, and runs each in simulated time; none named means all.

        Raises:
            InvalidInputError: The problem is malformed, or there is no such strategy.
        """
        check_problem(problem)
        known = (*STRATEGIES, *OFFLOADING_STRATEGIES)
        for number, name in enumerate(strategies):
            check_strategy(name or "''", known, f"strategies[{number}]")
        cost = self._cost(problem)
        return [self._result(cost, name, on_progress) for name in strategies or known]

    def explain(self, problem: PlanningProblem, on_progress: OnProgress = _ignore) -> Explanation:
        """Makes a plan, and says what holds it back and what would change it.

        Raises:
            InvalidInputError: The problem is malformed.
            PreconditionError: No plan fits the memory or the quality budget.
        """
        plan = self.create(problem, on_progress)
        return explain_plan(self._cost(problem), plan, lambda changed: self.create(changed, on_progress))

    def trade_quality(
        self, problem: PlanningProblem, num_points: int, on_progress: OnProgress = _ignore
    ) -> list[TradePoint]:
        """Makes plans for a row of quality budgets; raises as `explain`. No number of points means the default."""
        check_points(num_points)
        plans = trade_quality(problem, num_points or DEFAULT_POINTS, lambda changed: self.create(changed, on_progress))
        return unbeaten([TradePoint(plan, simulation_of(self._cost(problem), plan)) for plan in plans])

    def _result(self, cost: CostModel, strategy: str, on_progress: OnProgress) -> StrategyResult:
        try:
            if strategy in OFFLOADING_STRATEGIES:
                return self._offloaded(cost, strategy)
            options = replace(cost.problem.options, strategy=strategy)
            plan = self.create(replace(cost.problem, options=options), on_progress)
        except PreconditionError as error:
            return StrategyResult(strategy, error=error.message, reason=error.reason)
        return StrategyResult(strategy, plan, simulation=simulation_of(cost, plan))

    def _offloaded(self, cost: CostModel, strategy: str) -> StrategyResult:
        started = time.monotonic()
        pipeline = flexgen(cost, strategy)
        plan = pipeline.plan()
        plan = replace(plan, estimate=replace(plan.estimate, solve_s=time.monotonic() - started))
        is_short = cost.workload.output_tokens <= MAX_OUTPUT_TOKENS
        return StrategyResult(strategy, offload=plan, simulation=pipeline.simulate().simulation if is_short else None)

    def _cost(self, problem: PlanningProblem) -> CostModel:
        limit_s = problem.options.time_limit_s or self._time_limit_s
        options = replace(problem.options, time_limit_s=limit_s)
        return CostModel(replace(problem, options=options))
