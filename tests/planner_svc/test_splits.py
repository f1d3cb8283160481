"""Branch and bound over splits, and what it is made of, against brute force."""

from dataclasses import replace

import numpy as np
import pytest

from planner_svc import segment_losses
from planner_svc.assignment import AssignmentProblem
from planner_svc.milp import Solution, cheapest_assignment
from planner_svc.program_data import ProgramData
from planner_svc.region import region_below
from planner_svc.segment_losses import SegmentLosses
from planner_svc.splits import solve_splits
from tests.planner_svc.problems import all_assignments, brute_force_s, objective_s, random_problem


def solved(problem: AssignmentProblem, *, cutoff_s: float = np.inf, relative_gap: float = 0.0) -> Solution:
    """What branch and bound comes to in the end."""
    losses = SegmentLosses(problem.omega)
    solution = solve_splits(problem, losses, time_limit_s=20, cutoff_s=cutoff_s, relative_gap=relative_gap)
    assert solution is not None
    assert solution.is_final
    return solution


def check(problem: AssignmentProblem) -> None:
    """Where something fits, the best assignment is found and the bound holds; elsewhere nothing is found."""
    expected = brute_force_s(problem)
    if not problem.fits():
        pytest.skip("nothing fits in this draw")
    solution = solved(problem)
    found = np.inf if solution.assignment is None else objective_s(problem, solution.assignment)
    assert found == pytest.approx(expected, rel=1e-6)
    assert 0.97 * expected <= solution.bound_s <= expected * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_equals_brute_force(seed: int) -> None:
    """The least objective over all splits and precisions is found, and the bound is near it and not above it."""
    check(random_problem(seed))


@pytest.mark.parametrize("seed", range(12))
def test_batch_after_batch_equals_brute_force(seed: int) -> None:
    """The same where batches follow one another, and fill and drain do not count."""
    problem = random_problem(seed)
    check(replace(problem, schedule=replace(problem.schedule, is_repeated=True)))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("quality_budget", [0.1, 0.25, 0.6])
def test_under_a_budget_bounds_hold_and_plans_keep_to_it(seed: int, quality_budget: float) -> None:
    """Nothing is found that is over the budget, and no bound is above the best that keeps to it, if there is any."""
    problem = random_problem(seed, quality_budget=quality_budget)
    expected = brute_force_s(problem)
    if not problem.fits():
        pytest.skip("nothing fits in this draw")
    solution = solved(problem)
    assert solution.bound_s <= expected * (1 + 1e-6)
    if solution.assignment is not None:
        assert expected * (1 - 1e-6) <= objective_s(problem, solution.assignment) < np.inf


def test_many_layers_leave_little_open_under_a_budget() -> None:
    """With many layers there are splits just within the budget, and hardly anything is left between plan and bound."""
    problem = random_problem(4)
    omega = np.array([0.0, 0.1, 1.0]) * np.random.default_rng(0).lognormal(0, 0.7, (40, 1)) / 40
    capacity_bytes = np.full(problem.num_stages, 3e6 * 40 / problem.num_stages)
    problem = replace(problem, omega=omega, capacity_bytes=capacity_bytes, theta_s=0.0)
    free = solved(problem, relative_gap=1e-3)
    assert free.assignment is not None
    loss = sum(omega[layer, scheme] for layer, scheme in enumerate(s for stage in free.assignment for s in stage))
    limited = replace(problem, quality_budget=0.5 * loss)
    solution = solved(limited, relative_gap=1e-3)
    assert solution.assignment is not None
    found = objective_s(limited, solution.assignment)
    assert free.bound_s * (1 - 1e-9) <= solution.bound_s <= found < np.inf
    assert solution.bound_s >= 0.99 * found


@pytest.mark.parametrize("seed", range(12))
def test_given_schemes_equal_brute_force(seed: int) -> None:
    """The same where some layers have their scheme given."""
    problem = random_problem(seed)
    rng = np.random.default_rng(seed)
    omega = problem.omega.copy()
    for layer in range(0, problem.num_layers, 1 + seed % 2):
        omega[layer, np.arange(problem.num_schemes) != rng.integers(problem.num_schemes)] = np.inf
    check(replace(problem, omega=omega))


@pytest.mark.parametrize("seed", range(12))
def test_cutoff_hides_nothing_better(seed: int) -> None:
    """A cutoff above the optimum changes nothing; one below it gives no plan that is of interest, and a true bound."""
    problem = random_problem(seed)
    if not problem.fits():
        pytest.skip("nothing fits in this draw")
    best = brute_force_s(problem)
    above = solved(problem, cutoff_s=best * 1.05)
    assert above.assignment is not None
    assert objective_s(problem, above.assignment) == pytest.approx(best, rel=1e-6)
    below = solved(problem, cutoff_s=best * 0.9)
    assert below.assignment is None or objective_s(problem, below.assignment) >= best * (1 - 1e-6)
    assert below.bound_s <= best * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_a_region_holds_all_that_is_better(seed: int) -> None:
    """Whatever has an objective below the cutoff lies in every range of the region."""
    problem = random_problem(seed)
    if not problem.fits():
        pytest.skip("nothing fits in this draw")
    cutoff_s = brute_force_s(problem) * 1.2
    region, data = region_below(problem, cutoff_s), ProgramData.of(problem)
    assert region is not None
    links = np.array([data.link_prefill.max(), data.link_decode.max()])
    for assignment in all_assignments(problem):
        if objective_s(problem, assignment) >= cutoff_s:
            continue
        counts = np.array([np.bincount(stage, minlength=problem.num_schemes) for stage in assignment])
        sizes = counts.sum(axis=1)
        cuts = np.concatenate(([0], sizes.cumsum()))
        phases = (data.outside_prefill, data.layer_prefill), (data.outside_decode, data.layer_decode)
        stage_times = [outside + (counts * layer.reshape(counts.shape)).sum(axis=1) for outside, layer in phases]
        slowest = np.maximum(np.max(stage_times, axis=1), links)
        for (low, high), value in ((region.slowest, slowest), (region.num_layers, sizes), (region.cuts, cuts)):
            assert (low <= value).all()
            assert (value <= high).all()
        assert (counts <= region.max_counts).all()


def test_segment_losses_are_those_of_the_cheapest_assignment() -> None:
    """Every entry is the least sum of omega of its layers with its counts; layers may lack schemes; tables may grow."""
    rng = np.random.default_rng(0)
    omega = rng.uniform(0, 1, (7, 3))
    omega[rng.random(omega.shape) < 0.15] = np.inf
    losses = SegmentLosses(omega)
    for longest, max_counts in ((2, [1, 2, 2]), (5, [2, 1, 4])):
        assert losses.can_cover(longest, np.array(max_counts))
    for length, (counts, found) in enumerate(zip(losses.counts, losses.losses, strict=True)):
        assert set(counts.sum(axis=1)) == {length}
        for row, start in np.ndindex(found.shape):
            (schemes,) = cheapest_assignment(counts[row : row + 1].astype(float), omega[start : start + length])
            expected = sum(omega[start + number, scheme] for number, scheme in enumerate(schemes))
            assert found[row, start] == pytest.approx(expected)
    assert len(losses.counts) == 6


def test_a_table_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are counted before a table is made, and are those of the table."""
    problem = random_problem(3)
    losses = SegmentLosses(problem.omega)
    assert losses.can_cover(3, np.array([2, 3, 3]))
    size = sum(found.size for found in losses.losses)
    monkeypatch.setattr(segment_losses, "_MAX_NUMBERS", size)
    assert SegmentLosses(problem.omega).can_cover(3, np.array([2, 3, 3]))
    monkeypatch.setattr(segment_losses, "_MAX_NUMBERS", size - 1)
    assert not SegmentLosses(problem.omega).can_cover(3, np.array([2, 3, 3]))
    monkeypatch.setattr(segment_losses, "_MAX_NUMBERS", 1)
    limits = {"time_limit_s": 20.0, "cutoff_s": np.inf, "relative_gap": 0.0}
    assert solve_splits(problem, SegmentLosses(problem.omega), **limits) is None
