"""What a plan is limited by, what would change it, and what quality costs in throughput."""

from dataclasses import replace

import pytest

from llmpq.comparison import TradePoint
from llmpq.errors import DoesNotFitError
from llmpq.plan import PlanningProblem
from planner_svc.cost import CostModel
from planner_svc.explain import counterfactuals
from planner_svc.planner import Planner
from planner_svc.space import SearchSpace
from planner_svc.trade import unbeaten
from tests.planner_svc.devices import affine_law, device

PLANNER = Planner(time_limit_s=20.0)


@pytest.fixture
def tight(problem: PlanningProblem) -> PlanningProblem:
    """The problem with memory that does not hold w16 everywhere."""
    devices = (
        device("fast", affine_law(), memory_bytes=700_000),
        device("slow", affine_law(3.0), memory_bytes=700_000),
    )
    options = replace(problem.options, num_lanes=2, prefill_micro_batch=2)
    return replace(problem, devices=devices, options=options)


def test_each_stage_is_seen_against_its_limits(tight: PlanningProblem) -> None:
    """Ratios are those of the plan's own figures; some server is the slowest in each phase, unless it is a link."""
    explanation = PLANNER.explain(tight)
    for stage, planned in zip(explanation.stages, explanation.plan.stages, strict=True):
        assert stage.device_id == planned.device_id
        assert stage.memory_ratio == pytest.approx(planned.memory.used_bytes / planned.memory.budget_bytes)
        assert 0 < stage.prefill_ratio <= 1
        assert 0 < stage.decode_ratio <= 1
        assert ("decode" in stage.binding) == (stage.decode_ratio > 0.99)
    assert max(stage.decode_ratio for stage in explanation.stages) == pytest.approx(1)
    assert explanation.simulation is not None
    assert explanation.summary.startswith("Prefill takes")


def test_more_never_hurts_and_less_never_helps(tight: PlanningProblem) -> None:
    """A further device or more memory give no worse an objective; a device or a precision less, no better."""
    explanation = PLANNER.explain(tight)
    space = SearchSpace(CostModel(tight))
    objective = space.objective_s(explanation.plan)
    cases = {case.change: case for case in explanation.counterfactuals}
    assert {"one more device like fast", "without slow", "25% more memory on every device"} < set(cases)
    for change, case in cases.items():
        if case.error:
            continue
        if change.startswith(("one more", "25%")):
            assert case.objective <= objective * 1.003, change
        if change.startswith(("without", "no ")):
            assert case.objective >= objective * 0.997, change


def test_counterfactuals_keep_what_quality_is_worth(tight: PlanningProblem) -> None:
    """Each has the same theta as the plan, or the same budget, but for the one that is about it."""
    plan = PLANNER.create(tight)
    for change, problem in counterfactuals(tight, plan, 7.0):
        expected = 3.5 if change.startswith("quality") else 7.0
        assert problem.options.quality_weight == expected, change
    budgeted = replace(tight, options=replace(tight.options, quality_budget=0.5))
    budgets = {change: problem.options.quality_budget for change, problem in counterfactuals(budgeted, plan, 0.0)}
    assert budgets.pop("a quality budget of 1") == 1
    assert set(budgets.values()) == {0.5}


def test_a_case_without_a_plan_says_why(tight: PlanningProblem) -> None:
    """Where the devices that are left cannot hold the model, the counterfactual has the planner's error."""
    alone = replace(tight, devices=(device("one", affine_law(), memory_bytes=100_000),))
    with pytest.raises(DoesNotFitError) as caught:
        PLANNER.create(alone)
    nearly_enough = 90_000 + int(caught.value.metadata["short_bytes"])
    devices = tuple(device(name, affine_law(), memory_bytes=nearly_enough) for name in ("one", "two"))
    explanation = PLANNER.explain(replace(tight, devices=devices))
    case = next(case for case in explanation.counterfactuals if case.change == "without two")
    assert "bytes short" in case.error


def test_the_front_goes_from_the_least_loss_to_the_fastest(tight: PlanningProblem) -> None:
    """Losses and throughputs ascend together; the ends are the plans that care for one of the two alone."""
    points = PLANNER.trade_quality(tight, 5)
    losses = [point.plan.estimate.quality_loss for point in points]
    rates = [point.throughput_tokens_per_s for point in points]
    assert len(points) > 1
    assert losses == sorted(losses)
    assert rates == sorted(rates)
    careful = PLANNER.create(replace(tight, options=replace(tight.options, quality_weight=1e9)))
    assert losses[0] == pytest.approx(careful.estimate.quality_loss)


def test_beaten_points_are_left_out(tight: PlanningProblem) -> None:
    """A point with more loss and no more throughput than another is none of the front."""
    plan = PLANNER.create(tight)

    def point(loss: float, rate: float) -> TradePoint:
        estimate = replace(plan.estimate, quality_loss=loss, throughput_tokens_per_s=rate)
        return TradePoint(replace(plan, estimate=estimate))

    kept = unbeaten([point(0.3, 5), point(0.1, 4), point(0.2, 3), point(0.3, 6), point(0.4, 6)])
    assert [(found.plan.estimate.quality_loss, found.throughput_tokens_per_s) for found in kept] == [(0.1, 4), (0.3, 6)]
