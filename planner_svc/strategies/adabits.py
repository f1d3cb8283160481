"""Adabits: LLM-PQ's ablation that adapts precisions to memory alone."""

from functools import partial
from heapq import nsmallest

from llmpq.plan import Plan
from planner_svc.infeasible import does_not_fit
from planner_svc.local_search import WORK_PER_S
from planner_svc.search import OnProgress
from planner_svc.space import Candidate, SearchSpace
from planner_svc.starts import price, starts
from planner_svc.strategies.common import all_devices, one_micro_batch_size, within_budget
from planner_svc.transfer import Transfer

#: Splits at one precision to improve.
_NUM_STARTS = 2
#: Work of each of them, as a share of what the heuristic may do.
_WORK_SHARE = 0.25


def adabits(space: SearchSpace, _deadline: float, _on_progress: OnProgress) -> Plan:
    """The least sum of omega that fits all devices in the given order, whatever it takes in time (LLM-PQ, section 6).

    One micro-batch size serves both phases; the largest at which anything fits, as the ablation has it. Bit-width
    transfer with omega as the only objective stands in for the paper's ILP: with devices that are alike a solver
    takes minutes to choose between equally good plans.

    Raises:
        DoesNotFitError: Nothing fits, at any size.
        PreconditionError: The plan exceeds the quality budget.
    """
    order = all_devices(space)
    work = _WORK_SHARE * WORK_PER_S * space.options.time_limit_s
    candidates = [Candidate(order, setting) for setting in one_micro_batch_size(space, order)]
    for candidate in candidates:
        problem = space.problem(candidate).quality_only()
        most_exact = nsmallest(_NUM_STARTS, starts(problem), key=partial(price, problem))
        improved = [Transfer(problem, work=work).improve(start) for start in most_exact]
        assignment, loss = min(improved, key=lambda found: found[1], default=((), float("inf")))
        if loss < float("inf"):
            return within_budget(space, space.plan(candidate, assignment, "adabits"))
    raise does_not_fit(space, candidates)
