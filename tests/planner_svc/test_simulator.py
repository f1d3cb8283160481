"""The simulator against the closed formulas where those are exact, and against what must hold anywhere."""

from dataclasses import replace

import pytest

from llmpq.device import Phase
from llmpq.plan import LayerPrecision, LengthBucket, Plan, PlanningProblem, StagePlan
from planner_svc.cost import CostModel
from planner_svc.simulator import simulate
from planner_svc.timeline import closed_loop_s, open_loop_s
from tests.planner_svc.devices import LayerLaw, device


def _constant_law(seconds: float) -> LayerLaw:
    return lambda *_: seconds


def _problem(problem: PlanningProblem, workload: tuple[LengthBucket, ...]) -> PlanningProblem:
    """Devices whose layers take 1 ms and 2 ms, whatever a micro-batch holds."""
    devices = (device("one", _constant_law(1e-3)), device("two", _constant_law(2e-3)))
    return replace(problem, devices=devices, workload=workload)


def _plan(*, eta: int, xi: int, lanes: int, split: int = 3) -> Plan:
    layers = (LayerPrecision("w16"),) * 6
    stages = (StagePlan("one", 0, layers[:split]), StagePlan("two", split, layers[split:]))
    return Plan(
        model="model",
        strategy="",
        stages=stages,
        prefill_micro_batch=eta,
        decode_micro_batch=xi,
        num_lanes=lanes,
        max_sequence_tokens=512,
        max_prefill_tokens=4096,
    )


@pytest.mark.parametrize("eta", [1, 2, 3, 8])
def test_prefill_alone_takes_what_the_open_loop_formula_says(problem: PlanningProblem, eta: int) -> None:
    """Requests that end with their first token take total + (micro-batches - 1) * slowest."""
    cost = CostModel(_problem(problem, (LengthBucket(40, 1, 24),)))
    plan = _plan(eta=eta, xi=8, lanes=3)
    simulation = simulate(cost, plan)
    load = cost.workload.prefill_load(eta)
    times = cost.stage_times(plan.stages, Phase.PREFILL, load)
    assert simulation.num_micro_batches == 24 // eta
    assert simulation.output_tokens == 24
    expected = open_loop_s(total_s=times.total_s, slowest_s=times.slowest_s, num_micro_batches=24 / eta)
    assert simulation.total_s == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_each_further_token_takes_a_round_of_the_closed_loop(problem: PlanningProblem, lanes: int) -> None:
    """More tokens for everyone cost what the closed-loop formula says of as many more rounds."""
    plan = _plan(eta=4, xi=4, lanes=lanes)
    ends = {}
    for tokens in (20, 50):
        cost = CostModel(_problem(problem, (LengthBucket(40, tokens, 4 * lanes),)))
        ends[tokens] = simulate(cost, plan).total_s
    times = cost.stage_times(plan.stages, Phase.DECODE, cost.workload.decode_load(4))
    rounds = {
        tokens: closed_loop_s(total_s=times.total_s, slowest_s=times.slowest_s, num_lanes=lanes, num_rounds=tokens - 1)
        for tokens in ends
    }
    assert ends[50] - ends[20] == pytest.approx(rounds[50] - rounds[20], rel=1e-6)


def test_no_server_works_more_than_all_the_time(problem: PlanningProblem) -> None:
    """Every token comes once, a stage is never busy longer than the run, and the run is no longer than all work."""
    buckets = (LengthBucket(40, 20, 7), LengthBucket(5, 60, 3), LengthBucket(200, 2, 5))
    cost = CostModel(replace(problem, workload=buckets))
    stages = tuple(
        replace(stage, device_id=name)
        for stage, name in zip(_plan(eta=2, xi=2, lanes=2).stages, ("fast", "slow"), strict=True)
    )
    simulation = simulate(cost, replace(_plan(eta=2, xi=2, lanes=2), stages=stages))
    assert simulation.output_tokens == 7 * 20 + 3 * 60 + 5 * 2
    assert max(simulation.busy_s) < simulation.total_s
    assert 0 < simulation.prefill_s <= simulation.total_s


def test_the_formula_is_close_where_lengths_are_unlike(problem: PlanningProblem) -> None:
    """For unlike lengths the closed formula, which takes means, stays within a fifth of the simulation."""
    buckets = (LengthBucket(40, 20, 20), LengthBucket(20, 60, 20), LengthBucket(100, 30, 20))
    cost = CostModel(_problem(problem, buckets))
    plan = _plan(eta=4, xi=5, lanes=2)
    assert simulate(cost, plan).total_s == pytest.approx(cost.evaluate(plan).estimate.total_s, rel=0.2)
