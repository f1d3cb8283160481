"""The whole optimizer against exhaustive search: every order, every setting, every cut, every precision."""

from dataclasses import replace
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
import pytest

from llmpq.errors import PreconditionError
from llmpq.plan import STRATEGIES, LayerSensitivity, LengthBucket, PlanningProblem, PlanOptions
from planner_svc.assignment import AssignmentProblem
from planner_svc.cost import CostModel
from planner_svc.planner import Planner
from planner_svc.space import SearchSpace
from tests.planner_svc.devices import TINY, affine_law, device

PLANNER = Planner(time_limit_s=60.0)
NUM_INSTANCES, NUM_CLUSTERS = 200, 50


def some_quick(total: int, step: int, *, num_quick: int) -> list[Any]:
    """Seeds from 0 to `total` in steps; all but the first ones only run when they are asked for (-m exhaustive)."""
    marks = pytest.mark.exhaustive
    return [pytest.param(seed, marks=marks if seed >= num_quick * step else ()) for seed in range(0, total, step)]


def random_instance(seed: int) -> PlanningProblem:
    """Up to 6 layers, 3 devices and 4 schemes; memory holds some of the precisions; a weight or a budget on quality."""
    rng = np.random.default_rng(seed)
    num_layers, num_devices = int(rng.integers(2, 7)), int(rng.integers(1, 4))
    names = ["w16", *rng.choice(["w8", "w8a8", "w4", "w3"], size=int(rng.integers(1, 4)), replace=False)]
    shape = replace(TINY, num_layers=num_layers)
    devices = tuple(
        device(
            f"d{number}",
            affine_law(float(rng.choice([1.0, 1.0, 1.7, 3.0, 6.0]))),
            memory_bytes=int(rng.uniform(2e5, 9e5)),
            schemes=tuple(names),
            outside_slowdown=float(rng.uniform(0.5, 3)),
            link_latency_ns=int(rng.integers(10_000, 3_000_000)),
        )
        for number in range(num_devices)
    )
    workload = tuple(
        LengthBucket(int(rng.integers(5, 100)), int(rng.integers(1, 40)), int(rng.integers(1, 4)))
        for _ in range(int(rng.integers(1, 3)))
    )
    damage = {"w16": 0.0, "w8": 0.01, "w8a8": 0.02, "w4": 1.0, "w3": 4.0}
    sensitivities = tuple(
        LayerSensitivity(layer, name, damage[name] * float(share))
        for layer, share in enumerate(rng.dirichlet(np.ones(num_layers)))
        for name in damage
    )
    quality = [{}, {"quality_weight": float(rng.uniform(0, 2))}, {"quality_budget": float(rng.uniform(0.1, 1.5))}]
    options = PlanOptions(optimality_gap=0.0, **quality[seed % 3])  # type: ignore[arg-type]
    return PlanningProblem("model", shape, devices, workload, sensitivities, options)


def exhaustive_s(space: SearchSpace) -> float:
    """The least objective of all assignments of all candidates; infinite if nothing fits."""
    return min(_exhaustive_s(space.problem(candidate)) for candidate in space.candidates)


def _exhaustive_s(problem: AssignmentProblem, layers_per_group: int = 1) -> float:
    layers = np.arange(problem.num_layers)
    num_groups = problem.num_layers // layers_per_group
    schemes = np.array(list(product(range(problem.num_schemes), repeat=num_groups))).repeat(layers_per_group, axis=1)
    losses = problem.omega[layers, schemes].sum(axis=1)
    one_hot = np.eye(problem.num_schemes)[schemes]
    best_s = np.inf
    for cuts in combinations(range(layers_per_group, problem.num_layers, layers_per_group), problem.num_stages - 1):
        ends = (0, *cuts, problem.num_layers)
        counts = np.stack([one_hot[:, first:end].sum(axis=1) for first, end in pairwise(ends)], axis=1)
        best_s = min(best_s, float(problem.objectives_s(counts, losses).min()))
    return best_s


@pytest.mark.parametrize("first_seed", some_quick(NUM_INSTANCES, 10, num_quick=3))
def test_nothing_better_exists(first_seed: int) -> None:
    """The plan's objective is that of the best of all plans, to a millionth; where there is none, that is said."""
    for seed in range(first_seed, first_seed + 10):
        problem = random_instance(seed)
        space = SearchSpace(CostModel(problem))
        best_s = exhaustive_s(space)
        try:
            found_s = space.objective_s(PLANNER.create(problem))
        except PreconditionError:
            found_s = np.inf
        assert found_s == pytest.approx(best_s, rel=1e-6), seed


@pytest.mark.parametrize("layers_per_group", [2, 3])
def test_groups_of_layers_stay_together(layers_per_group: int) -> None:
    """The plan is the best of those in which the layers of a group share stage and precision; each counts in full."""
    for seed in range(6):
        problem = random_instance(seed)
        problem = replace(problem, shape=replace(problem.shape, num_layers=6), sensitivities=())
        rng = np.random.default_rng(seed)
        sensitivities = tuple(
            LayerSensitivity(layer, name, damage * float(share))
            for layer, share in enumerate(rng.dirichlet(np.ones(6)))
            for name, damage in (("w8", 0.01), ("w8a8", 0.02), ("w4", 1.0), ("w3", 4.0))
        )
        problem = replace(problem, sensitivities=sensitivities)
        space = SearchSpace(CostModel(problem))
        best_s = min(
            _exhaustive_s(space.problem(candidate), layers_per_group)
            for candidate in space.candidates
            if len(candidate.order) <= 6 // layers_per_group
        )
        grouped = replace(problem, options=replace(problem.options, layers_per_group=layers_per_group))
        try:
            found_s = space.objective_s(PLANNER.create(grouped))
        except PreconditionError:
            found_s = np.inf
        assert found_s == pytest.approx(best_s, rel=1e-6), seed


def random_cluster(seed: int) -> PlanningProblem:
    """Two to six devices of random kinds, 12 layers, every other one with a hard budget on quality."""
    rng = np.random.default_rng(1000 + seed)
    kinds = [
        (affine_law(float(rng.uniform(1, 8))), int(rng.uniform(5e5, 2e6)), float(rng.uniform(0.5, 4)))
        for _ in range(int(rng.integers(1, 4)))
    ]
    chosen = [kinds[int(rng.integers(len(kinds)))] for _ in range(int(rng.integers(2, 7)))]
    devices = tuple(
        device(f"d{number}", law, memory_bytes=memory, outside_slowdown=slowdown)
        for number, (law, memory, slowdown) in enumerate(chosen)
    )
    workload = (LengthBucket(int(rng.integers(10, 200)), int(rng.integers(2, 60)), int(rng.integers(4, 30))),)
    options = PlanOptions(time_limit_s=1.0, quality_budget=float(rng.uniform(0.01, 1)) if seed % 2 else None)
    return PlanningProblem("model", replace(TINY, num_layers=12), devices, workload, (), options)


@pytest.mark.parametrize("first_seed", some_quick(NUM_CLUSTERS, 5, num_quick=1))
def test_never_worse_than_any_baseline(first_seed: int) -> None:
    """On random mixed clusters no strategy has a lower objective than llm-pq; where one finds a plan, so does it."""
    for seed in range(first_seed, first_seed + 5):
        problem = random_cluster(seed)
        space = SearchSpace(CostModel(problem))
        objectives_s = {
            result.strategy: space.objective_s(result.plan) if result.plan else np.inf
            for result in PLANNER.compare(problem, STRATEGIES)
        }
        assert objectives_s["llm-pq"] <= min(objectives_s.values()) * (1 + 1e-9), (seed, objectives_s)
