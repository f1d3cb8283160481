"""LLM-PQ by its heuristic alone: no solver, any size."""

from dataclasses import replace

from llmpq.plan import Plan
from planner_svc.local_search import LocalSearch
from planner_svc.search import OnProgress
from planner_svc.space import SearchSpace
from planner_svc.strategies.common import quick_end


def llm_pq_heuristic(space: SearchSpace, deadline: float, on_progress: OnProgress) -> Plan:
    """Bit-width transfer from many starts over the most promising orders and micro-batch sizes (LLM-PQ-h).

    It takes `QUICK_SHARE` of the time at most, as a part of llm-pq does, which is how that is never worse.

    Raises:
        DoesNotFitError: Nothing fits the memory.
        PreconditionError: No plan within the quality budget was found.
    """
    return replace(LocalSearch(space, quick_end(deadline), on_progress).run(), strategy="llm-pq-heuristic")
