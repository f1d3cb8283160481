"""The strategies by name: LLM-PQ's own, and those that it is compared with.

Each takes a search space, a deadline (of `time.monotonic`) and whom to tell of progress, and returns an evaluated plan.
They see the same costs and the same memory, and are priced by the same simulator.
"""

from collections.abc import Callable

from llmpq.plan import STRATEGIES as STRATEGY_NAMES
from llmpq.plan import Plan
from planner_svc.search import OnProgress
from planner_svc.space import SearchSpace
from planner_svc.strategies.adabits import adabits
from planner_svc.strategies.het import het
from planner_svc.strategies.heuristic import llm_pq_heuristic
from planner_svc.strategies.joint import llm_pq
from planner_svc.strategies.pipeedge import pipeedge
from planner_svc.strategies.uniform import uniform

Strategy = Callable[[SearchSpace, float, OnProgress], Plan]

STRATEGIES: dict[str, Strategy] = dict(
    zip(STRATEGY_NAMES, (llm_pq, llm_pq_heuristic, adabits, pipeedge, uniform, het), strict=True)
)

#: The strategy of a request that names none.
DEFAULT_STRATEGY = STRATEGY_NAMES[0]
