"""The least cost under a deadline, against brute force, and what is said where no plan meets it."""

from dataclasses import replace

import numpy as np
import pytest

from llmpq.errors import PreconditionError
from llmpq.plan import PlanningProblem
from planner_svc.cost import CostModel
from planner_svc.planner import Planner
from planner_svc.schedule import Setting
from planner_svc.segment_losses import SegmentLosses
from planner_svc.space import SearchSpace
from planner_svc.splits import solve_splits
from tests.planner_svc.problems import all_assignments, objective_s, random_problem
from tests.planner_svc.test_optimality import exhaustive_s, random_instance, some_quick

PLANNER = Planner(time_limit_s=60.0)
NUM_INSTANCES = 200


def priced_instance(seed: int, **options: object) -> PlanningProblem:
    """A random instance whose faster devices cost more; the cost is to be least."""
    problem = random_instance(seed)
    prices = np.random.default_rng(seed).uniform(0.5, 4.0, len(problem.devices))
    devices = tuple(replace(one, usd_per_h=float(price)) for one, price in zip(problem.devices, prices, strict=True))
    changed = replace(problem.options, objective="cost", **options)  # type: ignore[arg-type]
    return replace(problem, devices=devices, options=changed)


def space_of(problem: PlanningProblem) -> SearchSpace:
    """The search space of a problem."""
    return SearchSpace(CostModel(problem))


def least_time_s(problem: PlanningProblem) -> float:
    """The least time of all plans within memory and quality budget; infinite if there are none."""
    return exhaustive_s(space_of(_fastest(problem)))


def _fastest(problem: PlanningProblem) -> PlanningProblem:
    options = replace(problem.options, objective="latency", deadline_s=0.0, quality_weight=0.0)
    return replace(problem, options=options)


@pytest.mark.parametrize("first_seed", some_quick(NUM_INSTANCES, 10, num_quick=3))
def test_nothing_cheaper_meets_the_deadline(first_seed: int) -> None:
    """Between the least time and that of the cheapest plan a deadline binds: the plan meets it, none is better."""
    num_binding = 0
    for seed in range(first_seed, first_seed + 10):
        free = priced_instance(seed)
        least_s = least_time_s(free)
        if np.isinf(least_s):
            continue
        cheapest_s = PLANNER.create(free).estimate.total_s
        share = np.random.default_rng(seed).uniform(0.05, 0.95)
        problem = priced_instance(seed, deadline_s=least_s * 1.001 + share * max(cheapest_s - least_s, 0.0))
        plan, space = PLANNER.create(problem), space_of(problem)
        assert plan.estimate.total_s <= problem.options.deadline_s * (1 + 1e-9), seed
        found_usd, best_usd = space.objective_s(plan), exhaustive_s(space)
        is_enumerated = Setting.of(plan) in space.settings(tuple(stage.device_id for stage in plan.stages))
        assert found_usd <= best_usd * (1 + 1e-6), seed
        assert found_usd >= best_usd * (1 - 1e-6) or not is_enumerated, seed  # baselines have sizes of their own
        num_binding += problem.options.deadline_s < cheapest_s
    assert num_binding > 0


@pytest.mark.parametrize("strategy", ["llm-pq", "llm-pq-heuristic"])
@pytest.mark.parametrize("seed", [4, 5, 6])
def test_a_deadline_that_nothing_meets_is_refused_with_the_least_time(seed: int, strategy: str) -> None:
    """The error has the least possible time; so much, as it is printed, is enough for a plan."""
    least_s = least_time_s(priced_instance(seed))
    with pytest.raises(PreconditionError, match="the least possible time is") as caught:
        PLANNER.create(priced_instance(seed, deadline_s=0.95 * least_s, strategy=strategy))
    assert caught.value.reason == "DEADLINE_INFEASIBLE"
    assert float(caught.value.metadata["least_time_s"]) == pytest.approx(least_s, rel=1e-4)
    printed_s = float(caught.value.message.split("least possible time is ")[1].split()[0])
    assert PLANNER.create(priced_instance(seed, deadline_s=printed_s)).estimate.total_s <= printed_s * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("share", [-0.1, 0.053, 0.471, 0.893])
def test_bounds_of_splits_hold_under_a_deadline(seed: int, share: float) -> None:
    """No bound is above the best that meets the deadline, no split is late, and where all are, that is proven."""
    problem = random_problem(seed)
    times_s, objectives_s = (
        np.array([objective_s(priced, assignment) for assignment in all_assignments(problem)])
        for priced in (replace(problem, theta_s=0.0), problem)
    )
    least_s, best_s = times_s.min(), times_s[objectives_s.argmin()]
    if np.isinf(least_s) or best_s <= least_s * (1 + 1e-9):
        pytest.skip("nothing fits in this draw, or the best is the fastest")
    deadline_s = least_s + share * (best_s - least_s if share > 0 else least_s)
    limited = replace(problem, deadline_s=deadline_s)
    losses = SegmentLosses(problem.omega)
    solution = solve_splits(limited, losses, time_limit_s=20, cutoff_s=np.inf, relative_gap=0.0)
    assert solution is not None
    expected_s = objectives_s[times_s <= deadline_s].min(initial=np.inf)
    assert solution.bound_s <= expected_s * (1 + 1e-6)
    if share < 0:
        assert solution.bound_s == np.inf
    if solution.assignment is not None:
        assert expected_s * (1 - 1e-6) <= objective_s(limited, solution.assignment) < np.inf
