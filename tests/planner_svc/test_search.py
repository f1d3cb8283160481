"""The search: what it enumerates, and that pruning loses nothing."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from llmpq.plan import DEFAULT_OPTIMALITY_GAP, LengthBucket, PlanningProblem
from planner_svc import segment_losses
from planner_svc.cost import CostModel
from planner_svc.counts import counts_bound_s
from planner_svc.milp import AssignmentModel
from planner_svc.orders import MAX_ORDERS
from planner_svc.search import Search
from planner_svc.space import MAX_CANDIDATES, SearchSpace
from tests.planner_svc.devices import affine_law, device

NO_DEADLINE = float("inf")


def space_of(problem: PlanningProblem) -> SearchSpace:
    """The search space of a problem."""
    return SearchSpace(CostModel(problem))


def tight(problem: PlanningProblem) -> PlanningProblem:
    """The problem with memory for a part of the work only, and requests of unlike lengths."""
    devices = (
        device("fast", affine_law(), memory_bytes=700_000, schemes=("w16", "w8", "w4")),
        device("slow", affine_law(1.7), memory_bytes=600_000, schemes=("w16", "w8", "w4"), outside_slowdown=1.7),
    )
    workload = (LengthBucket(40, 20, 3), LengthBucket(25, 30, 2), LengthBucket(60, 5, 2))
    return replace(problem, devices=devices, workload=workload)


@pytest.mark.parametrize("max_numbers", [2**24, 1])
def test_pruning_loses_nothing(problem: PlanningProblem, monkeypatch: pytest.MonkeyPatch, max_numbers: int) -> None:
    """The search finds, to its tolerance, the best of all candidates solved one by one, and its gap is honest.

    So it does where there is no room for the table that branch and bound over splits needs, and the programs do it all.
    """
    monkeypatch.setattr(segment_losses, "_MAX_NUMBERS", max_numbers)
    space = space_of(tight(problem))
    objectives = []
    for candidate in space.candidates:
        inner = space.problem(candidate)
        if inner.fits():
            solution = AssignmentModel(inner).solve(inner, time_limit_s=20)
            assert solution.assignment is not None
            objectives.append(space.objective_s(space.plan(candidate, solution.assignment, "")))
    assert 0 < len(objectives) < len(space.candidates)
    found = Search(space, None, NO_DEADLINE, lambda _: None).run()
    assert space.objective_s(found) <= min(objectives) * (1 + DEFAULT_OPTIMALITY_GAP)
    assert space.objective_s(found) * (1 - found.estimate.gap) <= min(objectives) * (1 + 1e-6)


def test_program_and_evaluation_price_alike(problem: PlanningProblem) -> None:
    """What the program minimizes is what the evaluator says of the plan, for every candidate."""
    space = space_of(tight(problem))
    for candidate in space.candidates:
        inner = space.problem(candidate)
        if not inner.fits():
            continue
        solution = AssignmentModel(inner).solve(inner, time_limit_s=20, relative_gap=1e-9)
        assert solution.assignment is not None
        plan = space.plan(candidate, solution.assignment, "")
        assert space.objective_s(plan) == pytest.approx(solution.bound_s, rel=1e-5)


def test_bounds_of_all_candidates_hold(problem: PlanningProblem) -> None:
    """No candidate's best plan is below the bound that it entered the search with."""
    space = space_of(tight(problem))
    for candidate, bound_s in zip(space.candidates, space.objective_bounds_s, strict=True):
        inner = space.problem(candidate)
        if inner.fits():
            assert bound_s <= counts_bound_s(inner) * (1 + 1e-6)


def test_orders_are_all_selections_of_unlike_devices(problem: PlanningProblem) -> None:
    """Orders are the arrangements of every non-empty selection, with equal devices interchangeable."""
    devices = (device("a", affine_law()), device("b", affine_law()), device("c", affine_law(2.0)))
    orders = space_of(replace(problem, devices=devices)).orders
    of_three = {("a", "b", "c"), ("a", "c", "b"), ("c", "a", "b")}
    assert set(orders) == of_three | {("a", "b"), ("a", "c"), ("c", "a"), ("a",), ("c",)}
    assert len(orders) == len(set(orders))


def test_many_devices_are_enumerated_in_bounded_time(problem: PlanningProblem) -> None:
    """Sixteen devices of four kinds give a bounded number of candidates, those that use the most devices first.

    Devices of a kind stay together, but for one that may be the first or the last.
    """
    devices = tuple(device(f"d{n}", affine_law(1.0 + n % 4)) for n in range(16))
    shape = replace(problem.shape, num_layers=20)
    space = space_of(replace(problem, devices=devices, shape=shape))
    assert len(space.candidates) <= MAX_CANDIDATES
    assert len(space.candidates[0].order) == len(devices)
    for order in space.orders:
        changes = sum(int(one[1:]) % 4 != int(other[1:]) % 4 for one, other in pairwise(order))
        assert changes <= len({int(name[1:]) % 4 for name in order})
    ends_and_devices = [
        (int(order[0][1:]) % 4, int(order[-1][1:]) % 4, *sorted(int(name[1:]) % 4 for name in order))
        for order in space.orders
    ]
    assert len(ends_and_devices) == len(set(ends_and_devices))
    assert any(len(order) == 4 for order in space.orders)


def test_no_pipeline_is_longer_than_the_model(problem: PlanningProblem) -> None:
    """Of more devices than layers, as many as layers are used."""
    devices = tuple(device(f"d{n}", affine_law(1.0 + n % 4)) for n in range(16))
    assert len(space_of(replace(problem, devices=devices)).candidates[0].order) == problem.shape.num_layers


def test_many_unlike_devices_have_few_orders(problem: PlanningProblem) -> None:
    """Two dozen devices of which no two are alike have millions of orders even with kinds together: few are tried."""
    devices = tuple(device(f"d{n}", affine_law(1.0 + n / 30)) for n in range(24))
    shape = replace(problem.shape, num_layers=40)
    orders = space_of(replace(problem, devices=devices, shape=shape, sensitivities=())).orders
    assert 0 < len(orders) <= MAX_ORDERS
    assert all(len(set(order)) == len(order) for order in orders)


def test_device_without_allowed_schemes_is_left_out(problem: PlanningProblem) -> None:
    """A device that can run none of the allowed schemes is in no order."""
    devices = (problem.devices[0], device("old", affine_law(), schemes=("w16",)))
    options = replace(problem.options, allowed_schemes=("w8a8",))
    assert space_of(replace(problem, devices=devices, options=options)).orders == [("fast",)]


def test_settings_keep_every_slot_busy_or_save_memory(problem: PlanningProblem) -> None:
    """Settings hold all requests at once or in waves, and prefill no more sequences than there are slots."""
    settings = space_of(problem).settings(("fast", "slow"))
    assert len(settings) == len(set(settings))
    assert {s.num_lanes for s in settings} == {1, 2, 3}
    assert any(s.num_slots >= 8 for s in settings)
    assert all(s.num_slots < 8 + s.num_lanes and s.prefill_micro_batch <= s.num_slots for s in settings)
    assert np.min([s.num_slots for s in settings]) == 1


def test_prompts_alone_fill_the_pipeline(problem: PlanningProblem) -> None:
    """Where nothing is decoded and requests wait for slots, these suffice for a prefill frame more than stages."""
    workload = tuple(replace(bucket, output_tokens=1) for bucket in problem.workload)
    settings = space_of(replace(problem, workload=workload)).settings(("fast", "slow"))
    waiting = [s for s in settings if s.num_slots < 8]
    assert all(3 * s.prefill_micro_batch <= s.num_slots or s.prefill_micro_batch == 1 for s in waiting)
    assert max(s.prefill_micro_batch for s in waiting) > 1
    assert max(s.prefill_micro_batch for s in settings) == 8


def test_whatever_progress_raises_ends_the_search(problem: PlanningProblem) -> None:
    """The caller can stop a search from its progress callback."""

    class StopError(Exception):
        pass

    def stop(_: object) -> None:
        raise StopError

    with pytest.raises(StopError):
        Search(space_of(problem), None, NO_DEADLINE, stop).run()
