"""LLM-PQ by its heuristic alone: no solver, any size."""

from dataclasses import replace

from llmpq.plan import Plan
from planner_svc.infeasible import explain
from planner_svc.local_search import LocalSearch
from planner_svc.search import OnProgress
from planner_svc.space import SearchSpace


def llm_pq_heuristic(space: SearchSpace, _deadline: float, on_progress: OnProgress) -> Plan:
    """Bit-width transfer from many starts over the most promising orders and micro-batch sizes (LLM-PQ-h).

    What it does depends on the time allowed, not on the clock: the same problem gets the same plan.

    Raises:
        DoesNotFitError: Nothing fits the memory.
        PreconditionError: No plan within the quality budget and the deadline was found.
    """
    plan = LocalSearch(space, on_progress).run()
    if plan is None:
        raise explain(space, is_exhaustive=space.has_limits)
    return replace(plan, strategy="llm-pq-heuristic")
