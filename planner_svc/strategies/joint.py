"""LLM-PQ: everything chosen together."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from llmpq.errors import PreconditionError
from llmpq.plan import Plan
from planner_svc.local_search import LocalSearch
from planner_svc.search import OnProgress, Search
from planner_svc.space import SearchSpace
from planner_svc.strategies.adabits import adabits
from planner_svc.strategies.het import het
from planner_svc.strategies.pipeedge import pipeedge
from planner_svc.strategies.uniform import uniform

#: Shares of the time for the strategies that it is compared with, and of what is left for the heuristic.
_BASELINES_SHARE, _HEURISTIC_SHARE = 0.1, 0.2


def llm_pq(space: SearchSpace, deadline: float, on_progress: OnProgress) -> Plan:
    """Device order, split, precisions and micro-batch sizes chosen together (LLM-PQ, section 4).

    Never worse than any of the strategies that it is compared with: the heuristic starts from the best of them, and the
    exact search from what the heuristic finds.
    """
    incumbent = _best_baseline(space, _after(_BASELINES_SHARE, deadline))
    quick = LocalSearch(space, incumbent, _after(_HEURISTIC_SHARE, deadline), on_progress)
    incumbent = _unless_impossible(quick.run)
    return replace(Search(space, incumbent, deadline, on_progress).run(), strategy="llm-pq")


def _after(share: float, deadline: float) -> float:
    """When this share of the time until the deadline is over."""
    now = time.monotonic()
    return now + share * max(deadline - now, 0.0)


def _best_baseline(space: SearchSpace, deadline: float) -> Plan | None:
    baselines = (uniform, pipeedge, het, adabits)
    plans = [_unless_impossible(partial(strategy, space, deadline, lambda _: None)) for strategy in baselines]
    return min((plan for plan in plans if plan), key=space.objective_s, default=None)


def _unless_impossible(make: Callable[[], Plan]) -> Plan | None:
    try:
        return make()
    except PreconditionError:
        return None
