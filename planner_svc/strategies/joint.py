"""LLM-PQ: everything chosen together."""

from dataclasses import replace

from llmpq.errors import PreconditionError
from llmpq.plan import Plan
from planner_svc.infeasible import explain
from planner_svc.local_search import LocalSearch
from planner_svc.search import OnProgress, Search
from planner_svc.space import SearchSpace
from planner_svc.strategies.adabits import adabits
from planner_svc.strategies.het import het
from planner_svc.strategies.pipeedge import pipeedge
from planner_svc.strategies.uniform import uniform

#: The strategies that it begins with, besides its own heuristic.
_BEGINNINGS = (uniform, pipeedge, het, adabits)


def llm_pq(space: SearchSpace, deadline: float, on_progress: OnProgress) -> Plan:
    """Device order, split, precisions and micro-batch sizes chosen together (LLM-PQ, section 4).

    Never worse than any of the strategies that it is compared with, because it begins with the answer of each; these
    depend on the time allowed, but not on the clock. The exact search improves on the best until the deadline.

    Raises:
        DoesNotFitError: No candidate fits the memory, even at its most compressed.
        PreconditionError: The quality budget or the deadline cannot be met, or no plan was found in time.
    """
    search = Search(space, _best_answer(space, deadline, on_progress), deadline, on_progress)
    plan = search.run()
    if plan is None:
        raise explain(space, is_exhaustive=search.is_exhaustive)
    return replace(plan, strategy="llm-pq")


def _best_answer(space: SearchSpace, deadline: float, on_progress: OnProgress) -> Plan | None:
    heuristic = LocalSearch(space, on_progress).run()
    plans = [heuristic] if heuristic else []
    for strategy in _BEGINNINGS:
        try:
            plans.append(strategy(space, deadline, on_progress))
        except PreconditionError:  # there is none, or none within the budget
            continue
    return min(plans, key=space.objective_s, default=None)
