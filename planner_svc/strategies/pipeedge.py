"""PipeEdge: knows that devices are unlike, not that there are two phases nor that layers may differ in precision."""

from collections.abc import Iterator

from llmpq.plan import Plan
from planner_svc.balance import balanced
from planner_svc.milp import Assignment
from planner_svc.search import OnProgress
from planner_svc.space import Candidate, SearchSpace
from planner_svc.strategies.common import most_exact_plan, numbers, one_micro_batch_size


def pipeedge(space: SearchSpace, _deadline: float, _on_progress: OnProgress) -> Plan:
    """The pipeline whose slowest server is fastest, at the highest precision that fits (PipeEdge, DSD 2022).

    Its dynamic program chooses the devices, their order and the split by the time of one forward pass; links count
    as servers. One micro-batch size serves both phases. Which phase the pass is measured in is not said by a method
    that knows only one: both are tried, and the better plan is kept. Raises as `common.most_exact_plan`.
    """

    def propose(candidate: Candidate, schemes: tuple[str, ...]) -> Iterator[Assignment]:
        problem = space.problem(candidate)
        for layer_s, outside_s in (
            (problem.layer_prefill_s, problem.outside_prefill_s),
            (problem.layer_decode_s, problem.outside_decode_s),
        ):
            split = balanced(numbers(space, schemes), layer_s, outside_s, problem.layer_bytes, problem.capacity_bytes)
            if split is not None:
                yield split

    candidates = [Candidate(order, setting) for order in space.orders for setting in one_micro_batch_size(space, order)]
    return most_exact_plan(space, "pipeedge", candidates, propose)
