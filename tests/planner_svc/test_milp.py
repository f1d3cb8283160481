"""The mixed-integer program against brute force."""

from dataclasses import replace

import numpy as np
import pytest

from planner_svc.assignment import AssignmentProblem
from planner_svc.counts import counts_bound_s, solve_counts
from planner_svc.milp import AssignmentModel, cheapest_assignment
from tests.planner_svc.problems import brute_force_s, objective_s, random_problem


@pytest.mark.parametrize("seed", range(25))
def test_equals_brute_force(seed: int) -> None:
    """The program finds the least objective over all splits and precisions, or that there is none."""
    problem = random_problem(seed)
    expected = brute_force_s(problem)
    if not problem.fits():
        assert expected == np.inf
        return
    solution = AssignmentModel(problem).solve(problem, time_limit_s=20, relative_gap=0)
    assert solution.assignment is not None
    assert objective_s(problem, solution.assignment) == pytest.approx(expected, rel=1e-6)
    assert solution.bound_s <= expected * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_budget_equals_brute_force(seed: int) -> None:
    """With a hard limit on the loss, the program still agrees with brute force, also on there being no plan."""
    problem = random_problem(seed, quality_budget=0.25)
    expected = brute_force_s(problem)
    if not problem.fits():
        pytest.skip("nothing fits in this draw")
    solution = AssignmentModel(problem).solve(problem, time_limit_s=20, relative_gap=0)
    found = np.inf if solution.assignment is None else objective_s(problem, solution.assignment)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_given_schemes_equal_brute_force(seed: int) -> None:
    """Where some layers have their scheme given, the program chooses the rest as brute force does, or finds no plan."""
    problem = random_problem(seed)
    rng = np.random.default_rng(seed)
    omega = problem.omega.copy()
    for layer in range(0, problem.num_layers, 1 + seed % 2):
        omega[layer, np.arange(problem.num_schemes) != rng.integers(problem.num_schemes)] = np.inf
    problem = replace(problem, omega=omega)
    expected = brute_force_s(problem)
    assert problem.fits() == np.isfinite(expected)
    if problem.fits():
        solution = AssignmentModel(problem).solve(problem, time_limit_s=20, relative_gap=0)
        assert solution.assignment is not None
        assert objective_s(problem, solution.assignment) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_bounds_are_bounds(seed: int) -> None:
    """Neither the cheap bound nor the relaxed program's exceeds the least objective."""
    problem = random_problem(seed)
    best = brute_force_s(problem)
    cheap = problem.time_bound_s() + problem.theta_s * problem.omega.min(axis=1).sum()
    assert cheap <= best * (1 + 1e-9)
    if problem.fits():
        assert counts_bound_s(problem) <= best * (1 + 1e-6)
        assert solve_counts(problem).bound_s <= best * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("quality_budget", [None, 0.25])
def test_counts_are_all_that_matters_where_layers_are_alike(seed: int, quality_budget: float | None) -> None:
    """Where layers cost the same in quality, the counts program agrees with brute force, or both find no plan."""
    problem = random_problem(seed, quality_budget=quality_budget)
    problem = replace(problem, omega=np.tile(problem.omega[:1], (problem.num_layers, 1)))
    if not problem.fits():
        pytest.skip("nothing fits in this draw")
    solution = solve_counts(problem)
    found = np.inf
    if solution.counts is not None:
        found = objective_s(problem, cheapest_assignment(solution.counts, problem.omega))
    assert found == pytest.approx(brute_force_s(problem), rel=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_batch_after_batch_equals_brute_force(seed: int) -> None:
    """Where batches follow one another, fill and drain do not count; both programs agree with brute force again."""
    problem = random_problem(seed)
    problem = replace(problem, schedule=replace(problem.schedule, is_repeated=True))
    _agrees_with_brute_force(problem)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("slack", [0.98, 1.05, 1.3])
def test_a_deadline_equals_brute_force(seed: int, slack: float) -> None:
    """Under a deadline the best plan that meets it is found; where none does, none is."""
    problem = random_problem(seed)
    fastest_s = brute_force_s(replace(problem, theta_s=0.0))
    if not np.isfinite(fastest_s):
        pytest.skip("nothing fits in this draw")
    _agrees_with_brute_force(replace(problem, deadline_s=slack * fastest_s))


def _agrees_with_brute_force(problem: AssignmentProblem) -> None:
    expected = brute_force_s(problem)
    if not problem.fits():
        pytest.skip("nothing fits in this draw")
    solution = AssignmentModel(problem).solve(problem, time_limit_s=20, relative_gap=0)
    found = np.inf if solution.assignment is None else objective_s(problem, solution.assignment)
    assert found == pytest.approx(expected, rel=1e-6)
    if np.isfinite(expected):
        assert solve_counts(problem).bound_s <= expected * (1 + 1e-6)


def test_a_bound_of_few_kinds_is_a_bound() -> None:
    """With more unlike layers than a bound tells apart, it stays below the program with all, and close to it."""
    problem = random_problem(3)
    rng = np.random.default_rng(0)
    omega = np.array([0.0, 0.1, 1.0]) * rng.lognormal(0, 0.7, (60, 1)) / 60
    capacity_bytes = np.full(problem.num_stages, 3e6 * 60 / problem.num_stages)
    problem = replace(problem, omega=omega, capacity_bytes=capacity_bytes)
    assert problem.fits()
    exact_s = solve_counts(problem, time_limit_s=20, relative_gap=1e-3).bound_s
    assert 0.95 * exact_s <= counts_bound_s(problem) <= exact_s * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_cutoff_hides_nothing_better(seed: int) -> None:
    """A cutoff above the optimum changes nothing; one below it gives no better plan, and a bound that still holds."""
    problem = random_problem(seed)
    if not problem.fits():
        pytest.skip("nothing fits in this draw")
    best = brute_force_s(problem)
    model = AssignmentModel(problem)
    above = model.solve(problem, time_limit_s=20, cutoff_s=best * 1.05, relative_gap=0)
    assert above.assignment is not None
    assert objective_s(problem, above.assignment) == pytest.approx(best, rel=1e-6)
    below = model.solve(problem, time_limit_s=20, cutoff_s=best * 0.9, relative_gap=0)
    assert below.assignment is None or objective_s(problem, below.assignment) >= best * (1 - 1e-6)
    assert below.bound_s <= best * (1 + 1e-6)


def test_one_model_serves_many_problems() -> None:
    """A compiled program gives for another problem of its dimensions what one compiled for it gives."""
    first, second = (random_problem(seed) for seed in (1, 1))
    model = AssignmentModel(first)
    before = model.solve(first, time_limit_s=20)
    model.solve(second.quality_only(), time_limit_s=20)
    assert model.solve(first, time_limit_s=20) == before
