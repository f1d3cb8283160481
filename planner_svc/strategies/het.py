"""Het: a split for unlike devices at one precision, as careful operators make it by hand."""

from collections.abc import Iterator

from llmpq.plan import Plan
from planner_svc.balance import balanced
from planner_svc.milp import Assignment
from planner_svc.search import OnProgress
from planner_svc.space import Candidate, SearchSpace
from planner_svc.strategies.common import all_devices, most_exact_plan, numbers
from planner_svc.strategies.uniform import paper_candidates


def het(space: SearchSpace, _deadline: float, _on_progress: OnProgress) -> Plan:
    """All devices in the given order, layers by their speed over the whole batch, one precision (SplitQuant's "het").

    The time of a layer is that of all its prefill frames and decode rounds together. Raises as
    `common.most_exact_plan`.
    """

    def propose(candidate: Candidate, schemes: tuple[str, ...]) -> Iterator[Assignment]:
        problem = space.problem(candidate)
        frames, rounds = problem.schedule.num_frames, problem.schedule.num_lanes * problem.schedule.num_rounds
        split = balanced(
            numbers(space, schemes),
            frames * problem.layer_prefill_s + rounds * problem.layer_decode_s,
            frames * problem.outside_prefill_s + rounds * problem.outside_decode_s,
            problem.layer_bytes,
            problem.capacity_bytes,
        )
        if split is not None:
            yield split

    return most_exact_plan(space, "het", paper_candidates(space, all_devices(space)), propose)
