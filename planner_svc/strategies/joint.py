"""LLM-PQ: everything chosen together."""

from dataclasses import replace

from llmpq.errors import PreconditionError
from llmpq.plan import Plan
from planner_svc.search import OnProgress, Search
from planner_svc.space import SearchSpace
from planner_svc.strategies.adabits import adabits
from planner_svc.strategies.het import het
from planner_svc.strategies.heuristic import llm_pq_heuristic
from planner_svc.strategies.pipeedge import pipeedge
from planner_svc.strategies.uniform import uniform

#: The strategies that it begins with.
_BEGINNINGS = (llm_pq_heuristic, uniform, pipeedge, het, adabits)


def llm_pq(space: SearchSpace, deadline: float, on_progress: OnProgress) -> Plan:
    """Device order, split, precisions and micro-batch sizes chosen together (LLM-PQ, section 4).

    Never worse than any of the strategies that it is compared with, because it begins with the answer of each; these
    depend on the time allowed, but not on the clock. The exact search improves on the best until the deadline.
    """
    return replace(
        Search(space, _best_answer(space, deadline, on_progress), deadline, on_progress).run(), strategy="llm-pq"
    )


def _best_answer(space: SearchSpace, deadline: float, on_progress: OnProgress) -> Plan | None:
    plans = []
    for strategy in _BEGINNINGS:
        try:
            plans.append(strategy(space, deadline, on_progress))
        except PreconditionError:  # there is none, or none within the budget
            continue
    return min(plans, key=space.objective_s, default=None)
