"""Small random inner problems, and their least objective by brute force."""

from collections.abc import Iterator
from itertools import combinations, pairwise, product

import numpy as np

from planner_svc.assignment import AssignmentProblem
from planner_svc.milp import Assignment
from planner_svc.schedule import Schedule
from planner_svc.workload import Load

LOAD = Load(1, 1, 1)


def random_problem(seed: int, *, quality_budget: float | None = None) -> AssignmentProblem:
    """A small problem in which time, memory and quality all matter."""
    rng = np.random.default_rng(seed)
    layers, stages, schemes = int(rng.integers(3, 6)), int(rng.integers(1, 4)), 3
    layer_s = (
        rng.uniform(0.5, 3.0, (2, stages, schemes)) * rng.uniform(1, 3, (1, stages, 1)) * 10.0 ** -rng.integers(0, 5)
    )
    unusable = rng.random((stages, schemes)) < 0.15
    unusable[:, 0] = False
    layer_s[:, unusable] = np.inf
    layer_bytes = np.array([4e6, 2.2e6, 1.3e6]) + rng.integers(0, 10**5, (stages, 1))
    outside_s, link_s = (
        rng.uniform(0, 2, (2, stages)) * layer_s[:, :, 0],
        rng.uniform(0, 2, (2, stages)) * layer_s[:, :, 0],
    )
    omega = np.array([0.0, 0.1, 1.0]) * rng.uniform(0.3, 3.0, (layers, 1)) / layers
    schedule = Schedule(
        int(rng.integers(1, 9)), int(rng.integers(1, 5)), int(rng.integers(0, 20)), LOAD, LOAD, LOAD, LOAD
    )
    return AssignmentProblem(
        layer_prefill_s=layer_s[0],
        layer_decode_s=layer_s[1],
        outside_prefill_s=outside_s[0],
        outside_decode_s=outside_s[1],
        link_prefill_s=link_s[0],
        link_decode_s=link_s[1],
        layer_bytes=layer_bytes,
        capacity_bytes=rng.uniform(1.5e6, 8e6, stages) * layers / stages / 1.5,
        omega=omega,
        theta_s=float(rng.uniform(0, 20) * layer_s[1, 0, 0]),
        quality_budget=quality_budget,
        schedule=schedule,
    )


def objective_s(problem: AssignmentProblem, assignment: Assignment) -> float:
    """Time + theta * loss of an assignment, infinite where it breaks a rule."""
    counts = np.array([np.bincount(stage, minlength=problem.num_schemes) for stage in assignment])
    loss = sum(problem.omega[layer, scheme] for layer, scheme in enumerate(s for stage in assignment for s in stage))
    fits = ((counts * problem.layer_bytes).sum(axis=1) <= problem.capacity_bytes).all()
    if not fits or (counts[~problem.is_usable] > 0).any() or (counts.sum(axis=1) == 0).any():
        return np.inf
    if problem.quality_budget is not None and loss > problem.quality_budget:
        return np.inf
    time_s = 0.0
    for layer_s, outside_s, link_s, phase_s in (
        (problem.layer_prefill_s, problem.outside_prefill_s, problem.link_prefill_s, problem.schedule.prefill_s),
        (problem.layer_decode_s, problem.outside_decode_s, problem.link_decode_s, problem.schedule.decode_s),
    ):
        stage_s = outside_s + (counts * np.where(problem.is_usable, layer_s, 0)).sum(axis=1)
        time_s += phase_s(stage_s.sum() + link_s.sum(), max(stage_s.max(), link_s.max()))
    if problem.deadline_s is not None and time_s > problem.deadline_s * (1 + 1e-9):
        return np.inf
    return float(time_s + problem.theta_s * loss)


def brute_force_s(problem: AssignmentProblem) -> float:
    """The least objective over all cuts and all schemes."""
    return min(objective_s(problem, assignment) for assignment in all_assignments(problem))


def all_assignments(problem: AssignmentProblem) -> Iterator[Assignment]:
    """All cuts, with all schemes."""
    for cuts in combinations(range(1, problem.num_layers), problem.num_stages - 1):
        ends = (0, *cuts, problem.num_layers)
        for schemes in product(range(problem.num_schemes), repeat=problem.num_layers):
            yield tuple(schemes[first:end] for first, end in pairwise(ends))
