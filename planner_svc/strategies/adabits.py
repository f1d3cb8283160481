"""Adabits: LLM-PQ's ablation that adapts precisions to memory alone."""

import time

from llmpq.plan import Plan
from planner_svc.infeasible import does_not_fit
from planner_svc.milp import AssignmentModel
from planner_svc.search import OnProgress
from planner_svc.space import Candidate, SearchSpace
from planner_svc.strategies.common import all_devices, one_micro_batch_size, within_budget

#: Longest solve of one program.
_SOLVE_LIMIT_S = 5.0


def adabits(space: SearchSpace, deadline: float, _on_progress: OnProgress) -> Plan:
    """The least sum of omega that fits all devices in the given order, whatever it takes in time (LLM-PQ, section 6).

    One micro-batch size serves both phases; the largest at which anything fits, as the ablation has it.

    Raises:
        DoesNotFitError: Nothing fits, at any size.
        PreconditionError: The plan exceeds the quality budget.
    """
    order = all_devices(space)
    candidates = [Candidate(order, setting) for setting in one_micro_batch_size(space, order)]
    for candidate in candidates:
        problem = space.problem(candidate)
        if problem.fits():
            limit_s = max(min(_SOLVE_LIMIT_S, deadline - time.monotonic()), 0.1)
            solution = AssignmentModel(problem.quality_only()).solve(problem.quality_only(), time_limit_s=limit_s)
            if solution.assignment is not None:
                return within_budget(space, space.plan(candidate, solution.assignment, "adabits"))
    raise does_not_fit(space, candidates)
