"""Offloading: the linear program against a grid, and what must hold of every pipeline."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from llmpq.device import Phase
from llmpq.errors import PreconditionError
from llmpq.plan import LayerPrecision, LengthBucket, PlanningProblem
from planner_svc.cost import CostModel
from planner_svc.offload import OffloadingStage, Policy, Shares
from planner_svc.planner import Planner
from planner_svc.schedule import Schedule
from planner_svc.strategies.flexgen import flexgen
from tests.planner_svc.devices import affine_law, device

STEPS = np.linspace(0, 1, 11)


def offloading(problem: PlanningProblem, *, memory_bytes: int, host_bytes: int = 10**8) -> CostModel:
    """Two devices with little memory of their own and a slow link to their host."""
    devices = tuple(
        replace(
            device(name, affine_law(slowdown), memory_bytes=memory_bytes),
            host_memory_bytes=host_bytes,
            host_link_bytes_per_s=5 * 10**6,
        )
        for name, slowdown in (("fast", 0.01), ("slow", 0.02))
    )
    return CostModel(replace(problem, devices=devices, workload=(LengthBucket(50, 20, 16),)))


def stage_of(cost: CostModel, policy: Policy) -> tuple[OffloadingStage, Schedule]:
    """The first half of the layers on the first device."""
    schedule = Schedule.of(cost.workload, policy.setting(50))
    return OffloadingStage(
        cost, "fast", LayerPrecision("w16"), 0, 3, is_first=True, is_last=False, policy=policy
    ), schedule


def batch_s(stage: OffloadingStage, shares: Shares, schedule: Schedule) -> float:
    """What the linear program minimizes."""
    prefill = stage.layer_s(shares, Phase.PREFILL, schedule.prefill_load)
    decode = stage.layer_s(shares, Phase.DECODE, schedule.decode_load)
    return schedule.num_frames * prefill + schedule.num_lanes * schedule.num_rounds * decode


@pytest.mark.parametrize("memory_bytes", [450_000, 700_000, 1_100_000])
@pytest.mark.parametrize("policy", [Policy(4, 2, 2), Policy(2, 4, 2), Policy(8, 1, 2)])
def test_shares_are_the_best_there_are(problem: PlanningProblem, memory_bytes: int, policy: Policy) -> None:
    """No shares of a fine grid that fit device and host are faster than those of the linear program."""
    cost = offloading(problem, memory_bytes=memory_bytes)
    stage, schedule = stage_of(cost, policy)
    chosen = stage.choose(schedule)
    grid = [Shares(*shares) for shares in product(STEPS, repeat=3)]
    fitting = [shares for shares in grid if stage.described(shares, schedule).device_bytes <= memory_bytes]
    if chosen is None:
        assert not fitting
        return
    assert stage.described(chosen, schedule).device_bytes <= memory_bytes * (1 + 1e-6)
    best_s = min((batch_s(stage, shares, schedule) for shares in fitting), default=np.inf)
    assert batch_s(stage, chosen, schedule) <= best_s * (1 + 1e-6)


def test_with_memory_for_all_nothing_moves(problem: PlanningProblem) -> None:
    """Where everything fits the device, everything stays there and a layer takes its computing time."""
    cost = offloading(problem, memory_bytes=10**8)
    stage, schedule = stage_of(cost, Policy(8, 1, 2))
    shares = stage.choose(schedule)
    assert shares is not None
    expected = cost.layer_s("fast", "w16", Phase.DECODE, schedule.decode_load)
    assert stage.layer_s(shares, Phase.DECODE, schedule.decode_load) == pytest.approx(expected)


def test_a_larger_block_pays_for_its_weights_once(problem: PlanningProblem) -> None:
    """With all weights on the host, a layer takes as long for four batches as for one, while loading rules."""
    cost = offloading(problem, memory_bytes=10**8)
    alone = Shares(0.0, 1.0, 1.0)
    times = []
    for policy in (Policy(2, 1, 1), Policy(2, 4, 1)):
        stage, schedule = stage_of(cost, policy)
        times.append(stage.layer_s(alone, Phase.DECODE, schedule.full_decode_load))
    assert times[0] == pytest.approx(times[1])


@pytest.mark.parametrize("name", ["flexgen", "flexgen-int8"])
def test_formula_and_simulation_agree(problem: PlanningProblem, name: str) -> None:
    """Equal requests take in the simulator about what the closed formulas say, and every token comes."""
    cost = offloading(problem, memory_bytes=550_000)
    pipeline = flexgen(cost, name)
    run = pipeline.simulate()
    assert run.output_tokens == 16 * 20
    assert run.total_s == pytest.approx(pipeline.plan().estimate.total_s, rel=0.1)
    assert sum(stage.num_layers for stage in pipeline.plan().stages) == problem.shape.num_layers


def test_fewer_bytes_are_faster(problem: PlanningProblem) -> None:
    """Where loading weights rules, 8 bits are faster than 16."""
    cost = offloading(problem, memory_bytes=550_000)
    rates = [flexgen(cost, name).plan().estimate.throughput_tokens_per_s for name in ("flexgen", "flexgen-int8")]
    assert rates[1] > rates[0]


def test_unknown_hosts_and_full_hosts_are_said(problem: PlanningProblem) -> None:
    """An unknown host, a host without room, and a budget that is too strict: each is an error of its own."""
    with pytest.raises(PreconditionError) as caught:
        flexgen(CostModel(problem), "flexgen")
    assert caught.value.reason == "NOT_AVAILABLE"
    with pytest.raises(PreconditionError) as caught:
        flexgen(offloading(problem, memory_bytes=550_000, host_bytes=1000), "flexgen")
    assert caught.value.reason == "DOES_NOT_FIT"
    cost = offloading(problem, memory_bytes=10**8)
    strict = replace(cost.problem, options=replace(problem.options, quality_budget=0.0))
    with pytest.raises(PreconditionError) as caught:
        flexgen(CostModel(strict), "flexgen-int8")
    assert caught.value.reason == "QUALITY_BUDGET_INFEASIBLE"


def test_the_mesh_is_never_given_such_a_plan(problem: PlanningProblem) -> None:
    """A comparison has it beside plans, not as one; CreatePlan does not know the strategy."""
    cost = offloading(problem, memory_bytes=550_000)
    planner = Planner(5.0)
    result = planner.compare(cost.problem, ["flexgen"])[0]
    assert result.plan is None
    assert result.offload is not None
    with pytest.raises(Exception, match="known strategies are"):
        planner.create(replace(cost.problem, options=replace(cost.problem.options, strategy="flexgen")))
