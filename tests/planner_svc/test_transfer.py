"""Bit-width transfer against brute force."""

import time
from itertools import pairwise

import numpy as np
import pytest

from planner_svc.assignment import AssignmentProblem
from planner_svc.milp import Assignment
from planner_svc.starts import price, starts
from planner_svc.transfer import Transfer
from tests.planner_svc.test_milp import brute_force_s, objective_s, random_problem


def _improved(problem: AssignmentProblem) -> list[tuple[Assignment, Assignment, float]]:
    """(start, result, what it says that the result comes to)."""
    transfer = Transfer(problem, time.monotonic() + 60)
    return [(start, *transfer.improve(start)) for start in starts(problem)]


@pytest.mark.parametrize("seed", range(40))
def test_what_is_found_is_what_it_is_said_to_be(seed: int) -> None:
    """A result has every layer once, no higher objective than its start, and the objective that brute force prices."""
    problem = random_problem(seed)
    for start, result, said_s in _improved(problem):
        assert sum(len(stage) for stage in result) == problem.num_layers
        assert said_s <= price(problem, start)
        assert said_s == pytest.approx(objective_s(problem, result), rel=1e-9)


def test_the_best_result_is_nearly_always_optimal() -> None:
    """Over 60 small problems the best of the starts reaches the optimum nine times in ten, and is never far off."""
    ratios = []
    for seed in range(60):
        problem = random_problem(seed)
        best_s = brute_force_s(problem)
        if np.isfinite(best_s):
            ratios.append(min((said_s for *_, said_s in _improved(problem)), default=np.inf) / best_s)
    assert np.mean(np.array(ratios) < 1 + 1e-9) > 0.9
    assert max(ratios) < 1.1


def test_stages_stay_contiguous() -> None:
    """Slides over stages in between, together with changes of precision, never tear a stage apart."""
    problem = random_problem(11)
    for start, result, _ in _improved(problem):
        ends = np.cumsum([0, *(len(stage) for stage in result)])
        assert len(result) == len(start)
        assert all(first < end for first, end in pairwise(ends))
