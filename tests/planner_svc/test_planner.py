"""Plans: what is chosen, and what is refused."""

from dataclasses import replace

import pytest

from llmpq.device import DeviceProfile
from llmpq.errors import DoesNotFitError, InvalidInputError, PreconditionError
from llmpq.frames import MAX_FRAME_BYTES, MAX_FRAME_ROWS, max_frame_rows
from llmpq.plan import (
    DEFAULT_OPTIMALITY_GAP,
    OFFLOADING_STRATEGIES,
    STRATEGIES,
    LayerPrecision,
    LayerSensitivity,
    LengthBucket,
    Plan,
    PlanningProblem,
    PlanOptions,
)
from llmpq.schemes import SCHEMES
from planner_svc.cost import CostModel
from planner_svc.planner import Planner
from planner_svc.search import Progress
from planner_svc.space import DEFAULT_THETA_SHARE
from planner_svc.workload import Load
from tests.planner_svc.devices import SMOLLM2, TINY, affine_law, device

PLANNER = Planner(time_limit_s=20.0)


def with_options(problem: PlanningProblem, **options: object) -> PlanningProblem:
    """The problem with some options changed."""
    return replace(problem, options=replace(problem.options, **options))  # type: ignore[arg-type]


def with_budget(profile: DeviceProfile, memory_bytes: int) -> DeviceProfile:
    """The device with another memory budget."""
    return replace(profile, description=replace(profile.description, memory_budget_bytes=memory_bytes))


def with_room(problem: PlanningProblem) -> PlanningProblem:
    """The problem on devices with plenty of memory."""
    return replace(problem, devices=tuple(with_budget(profile, 10**9) for profile in problem.devices))


def schemes_of(plan: Plan) -> list[str]:
    """The scheme of each layer."""
    return [layer.scheme for stage in plan.stages for layer in stage.layers]


def layers_of(plan: Plan) -> dict[str, int]:
    """Layers per device."""
    return {stage.device_id: len(stage.layers) for stage in plan.stages}


def memory_tight_problem(**options: object) -> PlanningProblem:
    """SmolLM2 on two devices that do not hold it at w8."""
    schemes = ("w16", "w8", "w4", "w3")
    devices = (
        device("fast", affine_law(), memory_bytes=140 * 10**6, schemes=schemes),
        device("slow", affine_law(2.0), memory_bytes=120 * 10**6, schemes=schemes),
    )
    workload = (LengthBucket(64, 32, 12), LengthBucket(100, 32, 12))
    return PlanningProblem("m", SMOLLM2, devices, workload, options=PlanOptions(**options))  # type: ignore[arg-type]


def test_slow_device_gets_fewer_layers(problem: PlanningProblem) -> None:
    """Where two devices share the work, the one that is three times slower holds fewer layers."""
    plan = PLANNER.create(with_options(problem, use_all_devices=True))
    assert sum(layers_of(plan).values()) == TINY.num_layers
    assert layers_of(plan)["fast"] > layers_of(plan)["slow"] >= 1


def test_useless_device_is_left_out_unless_all_are_asked_for(problem: PlanningProblem) -> None:
    """A device a thousand times slower does not appear in the plan; use_all_devices gives it a layer all the same."""
    devices = (problem.devices[0], device("useless", affine_law(1000.0), outside_slowdown=1000.0))
    problem = replace(problem, devices=devices)
    assert layers_of(PLANNER.create(problem)) == {"fast": 6}
    assert layers_of(PLANNER.create(with_options(problem, use_all_devices=True))) == {"fast": 5, "useless": 1}


def test_embedding_and_head_choose_the_order(problem: PlanningProblem) -> None:
    """The stage with the head goes to the device that computes the head faster, whatever the order given."""
    head_slow = device("head-slow", affine_law(), outside_slowdown=50.0)
    devices = (device("head-fast", affine_law()), head_slow)
    for given in (devices, devices[::-1]):
        plan = PLANNER.create(with_options(replace(problem, devices=given), use_all_devices=True))
        assert [stage.device_id for stage in plan.stages] == ["head-slow", "head-fast"]


def test_tight_memory_mixes_precisions() -> None:
    """Where w8 does not fit everywhere, some layers are compressed and no stage exceeds its budget."""
    plan = PLANNER.create(memory_tight_problem())
    assert len(set(schemes_of(plan))) > 1
    for stage in plan.stages:
        assert stage.memory.used_bytes <= stage.memory.budget_bytes
        assert stage.memory.kv_bytes > 0
        assert stage.prefill_ms > stage.decode_ms > 0


def test_sensitive_layers_keep_their_precision() -> None:
    """With two sensitive layers, it is others that are compressed."""
    omega = {"w16": 0.0, "w8": 0.01, "w8a8": 0.02, "w4": 1.0, "w3": 5.0}
    weights = [20.0 if layer in {0, 29} else 1.0 for layer in range(30)]
    sensitivities = tuple(
        LayerSensitivity(layer, scheme, value * weights[layer] / sum(weights))
        for layer in range(30)
        for scheme, value in omega.items()
    )
    schemes = schemes_of(PLANNER.create(replace(memory_tight_problem(), sensitivities=sensitivities)))
    assert {schemes[0], schemes[29]} <= {"w16", "w8"}
    assert {"w4", "w3"} & set(schemes)


def test_budget_is_respected_and_costs_time() -> None:
    """A plan under a quality budget stays within it; a tighter budget never makes it faster."""
    loose = PLANNER.create(memory_tight_problem(quality_budget=0.8))
    tight = PLANNER.create(memory_tight_problem(quality_budget=0.3))
    assert tight.estimate.quality_loss <= 0.3 < loose.estimate.quality_loss <= 0.8
    assert loose.estimate.total_s < tight.estimate.total_s


def test_impossible_budget_says_what_is_possible() -> None:
    """A budget below what the memory allows is refused with the smallest loss that can be reached, and that one can."""
    with pytest.raises(PreconditionError) as caught:
        PLANNER.create(memory_tight_problem(quality_budget=0.001))
    assert caught.value.reason == "QUALITY_BUDGET_INFEASIBLE"
    smallest = float(caught.value.metadata["smallest_quality_loss"])
    plan = PLANNER.create(memory_tight_problem(quality_budget=smallest))
    assert plan.estimate.quality_loss == pytest.approx(smallest, rel=1e-6)


def test_weight_buys_quality() -> None:
    """The higher the weight of quality, the smaller the loss."""
    losses = [PLANNER.create(memory_tight_problem(quality_weight=w)).estimate.quality_loss for w in (0.0, 1.0, 1000.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def test_default_weight_does_not_depend_on_the_unit_of_time(problem: PlanningProblem) -> None:
    """The default weight is a share of the least conceivable time, so slower devices of the same kind plan alike."""
    plans = []
    for slowdown in (1.0, 50.0):
        devices = tuple(
            device(name, affine_law(slowdown * factor), outside_slowdown=slowdown * factor, link_latency_ns=0)
            for name, factor in (("a", 1.0), ("b", 2.0))
        )
        devices = tuple(replace(profile, link_bytes_per_s=0) for profile in devices)
        plans.append(PLANNER.create(replace(problem, devices=devices)))
    assert plans[0].hash == plans[1].hash
    assert 0 < DEFAULT_THETA_SHARE < 1


@pytest.mark.parametrize("options", [{}, {"quality_weight": 0.5}, {"allowed_schemes": ("w16", "w4")}, {"num_lanes": 3}])
def test_never_worse_than_uniform(options: dict[str, object]) -> None:
    """LLM-PQ's time + weight * loss is at most that of the uniform plan."""
    problem = with_room(memory_tight_problem(**({"quality_weight": 0.1} | options)))
    weight = problem.options.quality_weight or 0.0
    ours, uniform = PLANNER.compare(problem, ["llm-pq", "uniform"])
    assert ours.plan is not None
    assert uniform.plan is not None
    ours_s, uniform_s = (p.estimate.total_s + weight * p.estimate.quality_loss for p in (ours.plan, uniform.plan))
    assert ours_s <= uniform_s


def test_uniform_is_even_and_as_exact_as_fits() -> None:
    """The uniform plan splits evenly, in the order given, at the highest precision for which every stage fits."""
    problem = with_room(memory_tight_problem(strategy="uniform"))
    plan = PLANNER.create(problem)
    assert list(layers_of(plan).items()) == [("fast", 15), ("slow", 15)]
    assert set(schemes_of(plan)) == {"w16"}
    assert plan.decode_micro_batch == 12
    small = PLANNER.create(with_options(problem, decode_micro_batch=1, allowed_schemes=("w8", "w8a8", "w3")))
    assert set(schemes_of(small)) == {"w8"}


@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("strategy", ["llm-pq", "uniform"])
def test_one_allowed_scheme_is_honoured(problem: PlanningProblem, strategy: str, scheme: str) -> None:
    """With one allowed scheme every layer has it, with the group size asked for where it has groups."""
    plan = PLANNER.create(with_options(problem, strategy=strategy, allowed_schemes=(scheme,), group_size=32))
    expected = LayerPrecision(scheme, 32 if SCHEMES[scheme].is_grouped else 0)
    assert {layer for stage in plan.stages for layer in stage.layers} == {expected}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_given_schemes_are_honoured(problem: PlanningProblem, strategy: str) -> None:
    """Layers whose schemes are given have exactly these, in order; the planner decides the rest."""
    given = ("w4", "w16", "w3", "w8a8", "w4", "w8")
    plan = PLANNER.create(with_options(problem, strategy=strategy, layer_schemes=given, use_all_devices=True))
    assert tuple(schemes_of(plan)) == given
    assert len(plan.stages) == 2


def test_given_schemes_find_a_device_that_runs_them(problem: PlanningProblem) -> None:
    """Where one device cannot run what the first layers are to have, they go to the other one."""
    old = device("old", affine_law(), schemes=("w16", "w8"))
    problem = replace(problem, devices=(old, device("new", affine_law(9.0))))
    plan = PLANNER.create(with_options(problem, layer_schemes=("w4",) * 2 + ("w16",) * 4))
    assert plan.stages[0].device_id == "new"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"layer_schemes": ("w3",) + ("w16",) * 5}, "NO_USABLE_SCHEME"),
        ({"layer_schemes": ("w4", "w16", "w16", "w16", "w16", "w4"), "use_all_devices": True}, "NO_USABLE_SCHEME"),
        ({"layer_schemes": ("w4",) * 6, "quality_budget": 0.5}, "QUALITY_BUDGET_INFEASIBLE"),
    ],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_given_schemes_that_cannot_be_met_are_refused(
    problem: PlanningProblem, strategy: str, options: dict[str, object], reason: str
) -> None:
    """No device runs a scheme, no pipeline of all devices has it where it is wanted, or the layers cost too much."""
    devices = (device("old", affine_law(), schemes=("w16",)), device("new", affine_law(), schemes=("w16", "w4")))
    if reason == "QUALITY_BUDGET_INFEASIBLE":
        devices = devices[1:]
    with pytest.raises(PreconditionError) as caught:
        PLANNER.create(with_options(replace(problem, devices=devices), strategy=strategy, **options))
    assert caught.value.reason == reason


def test_given_schemes_that_do_not_fit_name_device_and_bytes() -> None:
    """With the bytes that the error asks for the given schemes fit, and with less they do not."""
    given = ("w16",) * 10 + ("w4",) * 20
    problem = memory_tight_problem(layer_schemes=given, use_all_devices=True)
    devices = tuple(with_budget(profile, 80 * 10**6) for profile in problem.devices)
    with pytest.raises(DoesNotFitError, match="at the schemes given to its layers") as caught:
        PLANNER.create(replace(problem, devices=devices))
    short_bytes = int(caught.value.metadata["short_bytes"])
    for extra, fits in ((short_bytes - 1000, False), (short_bytes + 1000, True)):
        enough = tuple(
            with_budget(profile, 80 * 10**6 + extra * (profile.device_id == caught.value.subject))
            for profile in devices
        )
        if fits:
            assert tuple(schemes_of(PLANNER.create(replace(problem, devices=enough)))) == given
        else:
            with pytest.raises(DoesNotFitError):
                PLANNER.create(replace(problem, devices=enough))


@pytest.mark.parametrize("strategy", ["llm-pq", "uniform"])
def test_fixed_micro_batches_are_honoured(problem: PlanningProblem, strategy: str) -> None:
    """Sizes fixed by the options appear in the plan as they are."""
    plan = PLANNER.create(
        with_options(problem, strategy=strategy, prefill_micro_batch=3, decode_micro_batch=2, num_lanes=3)
    )
    assert (plan.prefill_micro_batch, plan.decode_micro_batch, plan.num_lanes, plan.num_slots) == (3, 2, 3, 6)


def test_single_request(problem: PlanningProblem) -> None:
    """One request is a workload like any other: one lane, one slot."""
    plan = PLANNER.create(replace(problem, workload=(LengthBucket(30, 12, 1),)))
    assert (plan.num_slots, plan.prefill_micro_batch) == (1, 1)
    assert plan.max_sequence_tokens == 42
    assert plan.estimate.throughput_tokens_per_s == pytest.approx(12 / plan.estimate.total_s)


def test_frames_hold_whole_prompts_where_there_is_memory(problem: PlanningProblem) -> None:
    """One device computes prompts whole, and as many at once as its slots; the largest frame bounds them all."""
    alone = with_options(replace(problem, devices=problem.devices[:1]), decode_micro_batch=6, num_lanes=1)
    plan = PLANNER.create(replace(alone, workload=(LengthBucket(400, 10, 6),)))
    assert (plan.prefill_micro_batch, plan.max_prefill_tokens) == (6, 2400)
    assert max_frame_rows(4 * TINY.hidden_size) == MAX_FRAME_ROWS
    assert max_frame_rows(MAX_FRAME_BYTES // 3) == 3


def test_prompts_are_cut_where_temporaries_do_not_fit(problem: PlanningProblem) -> None:
    """A device with memory for the temporaries of a part of a prompt gets prompts in such parts."""
    shape, workload = replace(TINY, max_positions=10_000), (LengthBucket(8000, 10, 2),)

    def planned(memory_bytes: int) -> Plan:
        alone = device("a", affine_law(), memory_bytes=memory_bytes)
        return PLANNER.create(replace(problem, shape=shape, devices=(alone,), workload=workload))

    roomy = planned(10**11)
    assert roomy.max_prefill_tokens >= 8000
    assert planned(roomy.stages[0].memory.used_bytes // 4).max_prefill_tokens in {4000, 2000, 1000, 500}


def test_hidden_states_in_8_bits_take_their_share_of_a_link(problem: PlanningProblem) -> None:
    """Links carry a byte an element and a scale for 64, the plan says so, and evaluating it anew changes nothing."""
    wide, narrow = (
        with_options(problem, has_int8_activations=is_int8, use_all_devices=True) for is_int8 in (False, True)
    )
    load = Load.of(4, 50, 0)
    costs = [CostModel(each).link_s("fast", "slow", load) for each in (wide, narrow)]
    link = next(each for each in problem.devices if each.device_id == "slow").link_from("fast")
    width = TINY.hidden_size
    assert costs == pytest.approx(
        [link.transfer_s(200 * 4 * width), link.transfer_s(200 * (width + 4 * -(-width // 64)))]
    )
    plan = PLANNER.create(narrow)
    assert plan.has_int8_activations
    assert not PLANNER.create(wide).has_int8_activations
    assert PLANNER.evaluate(wide, plan).estimate.total_s == pytest.approx(plan.estimate.total_s)


def test_devices_that_differ_in_name_only_are_one_kind(problem: PlanningProblem) -> None:
    """Orders that only exchange equal devices are tried once."""
    totals: list[int] = []

    def watch(progress: Progress) -> None:
        totals.append(progress.candidates_total)

    same = (device("a", affine_law()), device("b", affine_law()))
    PLANNER.create(with_options(replace(problem, devices=same), use_all_devices=True), watch)
    num_alike = totals[-1]
    PLANNER.create(with_options(problem, use_all_devices=True), watch)
    assert totals[-1] == 2 * num_alike


@pytest.mark.parametrize("time_limit_s", [1e-9, 0.02, 0.05, 0.1, 0.2])
def test_time_limit_keeps_the_incumbent(time_limit_s: float) -> None:
    """A search that is out of time, wherever it then is, returns the best plan it has and an honest gap."""
    problem = with_room(memory_tight_problem(quality_weight=0.0))
    plan = PLANNER.create(with_options(problem, time_limit_s=time_limit_s))
    best = PLANNER.create(problem)
    assert sum(layers_of(plan).values()) == SMOLLM2.num_layers
    assert 1 - best.estimate.total_s / plan.estimate.total_s - 1e-9 <= plan.estimate.gap <= 1
    assert best.estimate.gap <= DEFAULT_OPTIMALITY_GAP * (1 + 1e-9)


def test_memory_infeasible_names_device_and_bytes() -> None:
    """If nothing fits, the error says which device is short of how many bytes; with these bytes it fits."""
    problem = memory_tight_problem()
    problem = replace(problem, devices=(problem.devices[0], with_budget(problem.devices[1], 60 * 10**6)))
    problem = with_options(problem, use_all_devices=True)
    with pytest.raises(DoesNotFitError, match=r"device slow is .* bytes short") as caught:
        PLANNER.create(problem)
    assert caught.value.subject == "slow"
    short_bytes = int(caught.value.metadata["short_bytes"])
    fast, slow = problem.devices
    for extra, fits in ((short_bytes - 1000, False), (short_bytes + 1000, True)):
        enough = replace(problem, devices=(fast, with_budget(slow, 60 * 10**6 + extra)))
        if fits:
            assert PLANNER.create(enough).stages
        else:
            with pytest.raises(DoesNotFitError):
                PLANNER.create(enough)


def test_every_short_device_is_named() -> None:
    """Where two devices are short, the error says so of both."""
    problem = memory_tight_problem(use_all_devices=True)
    devices = tuple(with_budget(profile, 40 * 10**6) for profile in problem.devices)
    with pytest.raises(DoesNotFitError, match=r"bytes short and device .* bytes short"):
        PLANNER.create(replace(problem, devices=devices))


def test_evaluation_agrees_with_creation(problem: PlanningProblem) -> None:
    """Evaluating a plan gives the figures it was made with; options do not matter."""
    plan = PLANNER.create(problem)
    bare = replace(plan, hash="", stages=tuple(replace(s, prefill_ms=0.0, decode_ms=0.0) for s in plan.stages))
    assert PLANNER.evaluate(with_options(problem, allowed_schemes=("w16",)), bare) == plan


def test_evaluation_refuses_what_does_not_fit() -> None:
    """A plan that needs more memory than a device has is refused with the device and the bytes."""
    problem = memory_tight_problem()
    plan = PLANNER.create(problem)
    stages = tuple(replace(s, layers=(LayerPrecision("w16"),) * len(s.layers)) for s in plan.stages)
    with pytest.raises(DoesNotFitError, match="bytes short"):
        PLANNER.evaluate(problem, replace(plan, stages=stages))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": 2}, "plan.version"),
        ({"num_lanes": 0}, "plan.num_lanes"),
        ({"max_sequence_tokens": 10}, "plan.max_sequence_tokens"),
        ({"stages": ()}, "plan.stages"),
    ],
)
def test_evaluation_refuses_a_malformed_plan(problem: PlanningProblem, change: dict[str, object], field: str) -> None:
    """A plan that contradicts itself or the model is refused by field."""
    plan = replace(PLANNER.create(problem), **change)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError) as caught:
        PLANNER.evaluate(problem, plan)
    assert caught.value.subject == field


def test_evaluation_refuses_layers_that_do_not_follow(problem: PlanningProblem) -> None:
    """Layers must be contiguous from 0 and each device used once."""
    plan = PLANNER.create(with_options(problem, use_all_devices=True))
    first, second = plan.stages
    for stages, field in (
        ((second, first), "plan.stages[0].first_layer"),
        ((first, replace(second, device_id=first.device_id)), "plan.stages[1].device_id"),
        ((first, replace(second, device_id="other")), "plan.stages[1].device_id"),
        ((first, replace(second, layers=second.layers[1:])), "plan.stages"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            PLANNER.evaluate(problem, replace(plan, stages=stages))
        # Exact, unless a stage was empty already.
        assert caught.value.subject.startswith(field)


def test_comparison_reports_why_a_strategy_found_nothing() -> None:
    """A strategy without a plan has an error in its entry, and the others theirs."""
    results = PLANNER.compare(memory_tight_problem(quality_budget=0.4, decode_micro_batch=12), [])
    assert [result.strategy for result in results] == [*STRATEGIES, *OFFLOADING_STRATEGIES]
    assert all((result.plan is None) == bool(result.error) for result in results)
    assert results[list(STRATEGIES).index("uniform")].plan is None
