"""Problems that are too large for a table of all segments: groups of layers first, then single layers."""

from dataclasses import replace

import numpy as np
import pytest

from llmpq.plan import LayerSensitivity, LengthBucket, PlanningProblem, PlanOptions
from planner_svc import search, segment_losses
from planner_svc.assignment import AssignmentProblem
from planner_svc.cost import CostModel
from planner_svc.grouping import GroupedSolver
from planner_svc.milp import AssignmentModel
from planner_svc.planner import Planner
from planner_svc.search import Search
from planner_svc.segment_losses import SegmentLosses
from planner_svc.space import SearchSpace
from planner_svc.splits import solve_splits
from planner_svc.strategies import STRATEGIES
from tests.planner_svc.devices import TINY, affine_law, device
from tests.planner_svc.problems import objective_s, random_problem

LIMITS = {"time_limit_s": 20.0, "cutoff_s": np.inf, "relative_gap": 0.0}
NUM_LAYERS = 12


def long_problem(seed: int) -> AssignmentProblem:
    """A random problem with more layers, which are unlike, and memory for a part of the precisions."""
    problem = random_problem(seed)
    omega = np.array([0.0, 0.1, 1.0]) * np.random.default_rng(seed).lognormal(0, 0.7, (NUM_LAYERS, 1)) / NUM_LAYERS
    capacity_bytes = np.full(problem.num_stages, 2.5e6 * NUM_LAYERS / problem.num_stages)
    return replace(problem, omega=omega, capacity_bytes=capacity_bytes)


def large(num_layers: int) -> PlanningProblem:
    """Four devices of three kinds, layers that are unlike, and too little memory for the most exact schemes."""
    devices = tuple(
        device(f"d{number}", affine_law(1.0 + number % 3), memory_bytes=num_layers * 65_000, outside_slowdown=0.1)
        for number in range(4)
    )
    shares = np.random.default_rng(0).dirichlet(np.ones(num_layers))
    damage = {"w16": 0.0, "w8": 0.01, "w8a8": 0.02, "w4": 1.0, "w3": 4.0}
    sensitivities = tuple(
        LayerSensitivity(layer, name, value * float(share))
        for layer, share in enumerate(shares)
        for name, value in damage.items()
    )
    shape = replace(TINY, num_layers=num_layers)
    options = PlanOptions(time_limit_s=4.0, optimality_gap=0.05, num_lanes=4, decode_micro_batch=2)
    return PlanningProblem("model", shape, devices, (LengthBucket(64, 24, 8),), sensitivities, options)


@pytest.mark.parametrize("seed", range(12))
def test_refined_groups_are_no_worse_than_groups(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a table for groups of two only, the answer lies between the best of all splits and that of such groups."""
    problem = long_problem(seed)
    best = solve_splits(problem, SegmentLosses(problem.omega), **LIMITS)
    pairs = problem.grouped(2)
    of_pairs = solve_splits(pairs, SegmentLosses(pairs.omega), **LIMITS)
    assert best is not None
    assert of_pairs is not None
    if best.assignment is None or of_pairs.assignment is None:
        pytest.skip("nothing fits in this draw")
    solver = GroupedSolver(problem.omega)
    found = solver.solve(problem, **LIMITS)
    assert found is not None
    assert found.assignment is not None
    assert solver.layers_per_group == 2
    assert best.bound_s * (1 - 1e-6) <= objective_s(problem, found.assignment)
    assert objective_s(problem, found.assignment) <= objective_s(pairs, of_pairs.assignment) * (1 + 1e-6)
    monkeypatch.setattr(segment_losses, "_MAX_NUMBERS", 1)
    assert GroupedSolver(problem.omega).solve(problem, **LIMITS) is None


def test_a_gap_after_grouping_holds_for_single_layers(
    problem: PlanningProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where single layers have neither table nor program, the plan says so, and its gap covers the best of them."""
    shares = np.random.default_rng(3).dirichlet(np.ones(TINY.num_layers))
    sensitivities = tuple(
        LayerSensitivity(layer, name, value * float(share))
        for layer, share in enumerate(shares)
        for name, value in (("w8", 0.01), ("w4", 1.0))
    )
    devices = (
        device("fast", affine_law(), memory_bytes=700_000, schemes=("w16", "w8", "w4")),
        device("slow", affine_law(1.7), memory_bytes=600_000, schemes=("w16", "w8", "w4")),
    )
    problem = replace(problem, devices=devices, sensitivities=sensitivities)
    space = SearchSpace(CostModel(problem))
    objectives_s = []
    for candidate in space.candidates:
        inner = space.problem(candidate)
        if inner.fits():
            solution = AssignmentModel(inner).solve(inner, time_limit_s=20)
            assert solution.assignment is not None
            objectives_s.append(space.objective_s(space.plan(candidate, solution.assignment, "")))
    monkeypatch.setattr(segment_losses, "_MAX_NUMBERS", 60)
    monkeypatch.setattr(search, "_MAX_CHOICES", 0)
    plan = Search(space, None, np.inf, lambda _: None).run()
    assert plan is not None
    assert plan.estimate.layers_per_group > 1
    assert space.objective_s(plan) * (1 - plan.estimate.gap) <= min(objectives_s) * (1 + 1e-6)
    assert space.objective_s(plan) >= min(objectives_s) * (1 - 1e-4)


def test_what_is_too_large_is_grouped_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan is valid, says that layers were grouped, and is no worse than that of any other strategy."""
    monkeypatch.setattr(segment_losses, "_MAX_NUMBERS", 2**14)
    monkeypatch.setattr(search, "_MAX_CHOICES", 0)
    problem = large(96)
    space = SearchSpace(CostModel(problem))
    plans = {name: make(space, np.inf, lambda _: None) for name, make in STRATEGIES.items()}
    plan = plans["llm-pq"]
    assert plan.estimate.layers_per_group > 1
    assert plan.estimate.gap <= 0.1
    assert Planner(time_limit_s=1.0).evaluate(problem, plan).estimate.total_s == plan.estimate.total_s
    assert space.objective_s(plan) <= min(map(space.objective_s, plans.values())) * (1 + 1e-9)
