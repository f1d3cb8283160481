"""Why a plan is as it is: what limits each stage, and what would change if the problem were a little different."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from llmpq.comparison import Counterfactual, Explanation, StageExplanation
from llmpq.device import DeviceProfile, Phase
from llmpq.errors import MeshError
from llmpq.memory import kv_bytes, layer_bytes
from llmpq.plan import LayerPrecision, Plan, PlanningProblem, StagePlan
from llmpq.schemes import SCHEMES
from planner_svc.cost import CostModel, StageTimes, profiles_alike
from planner_svc.schedule import Schedule, Setting
from planner_svc.simulator import simulation_of
from planner_svc.space import SearchSpace

#: Time for each counterfactual.
COUNTERFACTUAL_LIMIT_S = 2.0
#: Within this share of the slowest, a stage counts as the slowest too.
_NEARLY = 0.01
#: Memory that devices have more of in a counterfactual, as a share.
_MORE_MEMORY = 0.25
#: How much looser a budget, or cheaper quality, is in a counterfactual.
_LOOSER = 2.0

#: Makes the best plan for a problem.
Create = Callable[[PlanningProblem], Plan]


def explain_plan(cost: CostModel, plan: Plan, create: Create) -> Explanation:
    """What a plan is limited by, and counterfactuals with the same worth of quality, each planned anew.

    Args:
        cost: Of the problem that the plan is for.
        plan: The plan.
        create: Plans the counterfactuals.
    """
    schedule = Schedule.of(cost.workload, Setting.of(plan))
    prefill = cost.stage_times(plan.stages, Phase.PREFILL, schedule.prefill_load)
    decode = cost.stage_times(plan.stages, Phase.DECODE, schedule.decode_load)
    stages = tuple(
        _explained(cost, plan, stage, prefill.compute_s[number] / prefill.slowest_s, _share(decode, number))
        for number, stage in enumerate(plan.stages)
    )
    space = SearchSpace(cost)
    changes = counterfactuals(cost.problem, plan, space.theta_s)
    return Explanation(
        plan=plan,
        simulation=simulation_of(cost, plan),
        stages=stages,
        summary=_summary(plan, stages, schedule, decode),
        counterfactuals=tuple(_solved(change, problem, space, create) for change, problem in changes),
    )


def counterfactuals(problem: PlanningProblem, plan: Plan, theta_s: float) -> Iterator[tuple[str, PlanningProblem]]:
    """The problem a little different in one thing after another, with quality worth as much as in the plan.

    Args:
        problem: The problem.
        plan: Its plan.
        theta_s: What a unit of omega is worth.
    """
    options = replace(problem.options, time_limit_s=COUNTERFACTUAL_LIMIT_S)
    if options.quality_budget is None:
        options = replace(options, quality_weight=theta_s)
    problem = replace(problem, options=options)
    for kind in _kinds(problem.devices):
        more = replace(kind[0], device_id=f"{kind[0].device_id}-more")
        yield f"one more device like {kind[0].device_id}", replace(problem, devices=(*problem.devices, more))
    for kind in _kinds(problem.devices):
        fewer = tuple(device for device in problem.devices if device != kind[-1])
        if fewer:
            yield f"without {kind[-1].device_id}", replace(problem, devices=fewer)
    if not options.layer_schemes:
        yield from _other_precisions(problem, plan)
    richer = tuple(_with_memory(device, 1 + _MORE_MEMORY) for device in problem.devices)
    yield f"{_MORE_MEMORY:.0%} more memory on every device", replace(problem, devices=richer)
    if options.quality_budget is not None:
        looser = replace(options, quality_budget=options.quality_budget * _LOOSER)
        yield f"a quality budget of {looser.quality_budget:g}", replace(problem, options=looser)
    elif options.quality_weight:
        looser = replace(options, quality_weight=options.quality_weight / _LOOSER)
        yield "quality worth half as much", replace(problem, options=looser)


def _other_precisions(problem: PlanningProblem, plan: Plan) -> Iterator[tuple[str, PlanningProblem]]:
    """Each precision that is not allowed, allowed; each that the plan uses, forbidden."""
    runnable = {scheme for device in problem.devices for scheme in device.description.schemes}
    allowed = tuple(name for name in SCHEMES if name in (problem.options.allowed_schemes or runnable))
    used = {layer.scheme for stage in plan.stages for layer in stage.layers}
    for scheme in SCHEMES:
        if scheme in runnable and scheme not in allowed:
            change, schemes = f"{scheme} allowed too", (*allowed, scheme)
        elif scheme in used and len(allowed) > 1:
            change, schemes = f"no {scheme}", tuple(name for name in allowed if name != scheme)
        else:
            continue
        yield change, replace(problem, options=replace(problem.options, allowed_schemes=schemes))


def _solved(change: str, problem: PlanningProblem, space: SearchSpace, create: Create) -> Counterfactual:
    try:
        plan = create(problem)
    except MeshError as error:
        return Counterfactual(change, error=error.message)
    estimate = plan.estimate
    return Counterfactual(
        change, estimate.throughput_tokens_per_s, estimate.quality_loss, space.objective_s(plan), estimate.gap
    )


def _explained(cost: CostModel, plan: Plan, stage: StagePlan, prefill: float, decode: float) -> StageExplanation:
    memory = stage.memory
    limits = {
        "memory": memory.budget_bytes - memory.used_bytes < _next_step_bytes(cost, plan, stage),
        "prefill": prefill >= 1 - _NEARLY,
        "decode": decode >= 1 - _NEARLY,
    }
    binding = tuple(name for name, is_binding in limits.items() if is_binding)
    return StageExplanation(stage.device_id, memory.used_bytes / memory.budget_bytes, prefill, decode, binding)


def _next_step_bytes(cost: CostModel, plan: Plan, stage: StagePlan) -> int:
    """Bytes of the smallest step: a layer at the next more exact precision, or one more like the smallest."""
    device = cost.devices[stage.device_id].description
    sizes = {
        scheme: layer_bytes(cost.shape, LayerPrecision(scheme, stage.layers[0].group_size)) for scheme in device.schemes
    }
    own = [layer_bytes(cost.shape, layer) for layer in stage.layers]
    cache = kv_bytes(
        cost.shape,
        num_layers=1,
        num_slots=plan.num_slots,
        max_sequence_tokens=plan.max_sequence_tokens,
        activation_bytes=device.activation_bytes,
        is_int8=plan.has_int8_kv_cache,
    )
    steps = [size - layer for layer in own for size in sizes.values() if size > layer]
    return min([*steps, min(own) + cache])


def _share(times: StageTimes, number: int) -> float:
    return times.compute_s[number] / times.slowest_s if times.slowest_s else 0.0


def _summary(plan: Plan, stages: tuple[StageExplanation, ...], schedule: Schedule, decode: StageTimes) -> str:
    estimate = plan.estimate
    shares = f"Prefill takes {estimate.prefill_s / estimate.total_s:.0%} of the time, decoding the rest."
    busiest = max(stages, key=lambda stage: stage.decode_ratio).device_id
    if schedule.num_rounds == 0:
        pace = ""
    elif max(decode.compute_s) < decode.slowest_s:
        pace = " A link is slower than every stage in decoding."
    elif schedule.num_lanes * decode.slowest_s >= decode.total_s:
        pace = f" {busiest} sets the pace of decoding: it never waits."
    else:
        pace = " A decode round is as long as all stages together: each token waits for the last one, no stage is full."
    full = [stage.device_id for stage in stages if "memory" in stage.binding]
    memory = f" Memory is full on {', '.join(full)}." if full else " Memory is left on every device."
    return shares + pace + memory


def _kinds(devices: tuple[DeviceProfile, ...]) -> list[list[DeviceProfile]]:
    kinds: list[list[DeviceProfile]] = []
    for device in devices:
        alike = next((kind for kind in kinds if profiles_alike(kind[0], device)), None)
        if alike is None:
            kinds.append([device])
        else:
            alike.append(device)
    return kinds


def _with_memory(device: DeviceProfile, factor: float) -> DeviceProfile:
    budget_bytes = int(device.description.memory_budget_bytes * factor)
    return replace(device, description=replace(device.description, memory_budget_bytes=budget_bytes))
