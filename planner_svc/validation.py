"""What a request must satisfy before anything is computed from it. Each refusal names the field and the way out."""

from collections import Counter
from collections.abc import Iterable
from math import isfinite

from llmpq.errors import InvalidInputError
from llmpq.families import KNOWN_FAMILIES
from llmpq.frames import max_frame_rows
from llmpq.model import ModelShape
from llmpq.plan import OBJECTIVES, PLAN_VERSION, LayerSensitivity, Plan, PlanningProblem, PlanOptions
from llmpq.schemes import GROUP_SIZES, SCHEMES

#: Beyond these, numbers are mistakes; they keep sums exact and a search from running out of memory.
MAX_LAYERS = 1_000
MAX_DEVICES = 64
MAX_DIMENSION = 10**7
MAX_REQUESTS = 10**7
MAX_LANES = 1_024
MAX_POINTS = 100
MAX_BYTES = 10**16
MAX_NANOSECONDS = 10**15


def check_problem(problem: PlanningProblem) -> None:
    """Checks a planning problem.

    Raises:
        InvalidInputError: Names the first field that is wrong.
    """
    _check_shape(problem.shape)
    _check_devices(problem)
    _check_workload(problem)
    _check_sensitivities(problem.sensitivities, problem.shape.num_layers)
    _check_options(problem.options, len(problem.devices), problem.shape.num_layers)
    _check_micro_batch(problem)
    _check_prices(problem)


def check_plan(problem: PlanningProblem, plan: Plan) -> None:
    """Checks a plan against the problem that it is to be evaluated for.

    Raises:
        InvalidInputError: Names the first field that is wrong.
    """
    _require(plan.version == PLAN_VERSION, "plan.version", f"is {plan.version}; this planner knows {PLAN_VERSION}")
    for name in ("prefill_micro_batch", "decode_micro_batch", "num_lanes", "max_prefill_tokens"):
        _in_range(getattr(plan, name), 1, MAX_REQUESTS, f"plan.{name}")
    _in_range(plan.num_lanes, 1, MAX_LANES, "plan.num_lanes")
    longest = max(bucket.prompt_tokens + bucket.output_tokens for bucket in problem.workload)
    _in_range(plan.max_sequence_tokens, longest, MAX_DIMENSION, "plan.max_sequence_tokens")
    _check_stages(problem, plan)


def check_strategy(strategy: str, known: Iterable[str], field: str) -> None:
    """Checks the name of a strategy; empty means the default."""
    known = sorted(known)
    _require(strategy in {"", *known}, field, f"is '{strategy}'; known strategies are {', '.join(known)}")


def check_points(num_points: int) -> None:
    """Checks a number of points of a curve; 0 means the default."""
    _in_range(num_points, 0, MAX_POINTS, "num_points")


def check_requests(num_requests: int, field: str) -> None:
    """Checks a number of requests."""
    _in_range(num_requests, 1, MAX_REQUESTS, field)


def _check_shape(shape: ModelShape) -> None:
    field = "problem.shape"
    known = ", ".join(KNOWN_FAMILIES)
    _require(shape.family in KNOWN_FAMILIES, f"{field}.family", f"is '{shape.family}'; known families are {known}")
    _in_range(shape.num_layers, 1, MAX_LAYERS, f"{field}.num_layers")
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "vocab_size",
        "max_positions",
    ):
        _in_range(getattr(shape, name), 1, MAX_DIMENSION, f"{field}.{name}")
    for name in (
        "learned_positions",
        "num_norm_elements",
        "num_bias_elements",
        "num_embedding_norm_elements",
        "num_head_norm_elements",
        "projected_embedding_size",
    ):
        _in_range(getattr(shape, name), 0, MAX_DIMENSION, f"{field}.{name}")
    divides = shape.num_heads % shape.num_kv_heads == 0
    _require(
        divides, f"{field}.num_kv_heads", f"is {shape.num_kv_heads}, which does not divide {shape.num_heads} heads"
    )


def _check_devices(problem: PlanningProblem) -> None:
    _in_range(len(problem.devices), 1, MAX_DEVICES, "problem.devices")
    for number, device in enumerate(problem.devices):
        field = f"problem.devices[{number}]"
        _require(bool(device.device_id), f"{field}.device_id", "is empty")
        description = device.description
        _in_range(description.memory_budget_bytes, 1, MAX_BYTES, f"{field}.description.memory_budget_bytes")
        _in_range(description.activation_bytes, 1, 8, f"{field}.description.activation_bytes")
        _check_schemes(description.schemes, f"{field}.description.schemes")
        _in_range(device.link_latency_ns, 0, MAX_NANOSECONDS, f"{field}.link_latency_ns")
        _in_range(device.link_bytes_per_s, 0, MAX_BYTES, f"{field}.link_bytes_per_s")
        _in_range(device.host_memory_bytes, 0, MAX_BYTES, f"{field}.host_memory_bytes")
        _in_range(device.host_link_bytes_per_s, 0, MAX_BYTES, f"{field}.host_link_bytes_per_s")
        _not_negative(device.usd_per_h, f"{field}.usd_per_h")
        _require(bool(device.points), f"{field}.points", f"is empty; profile device {device.device_id} for this model")
        for index, point in enumerate(device.points):
            _in_range(point.duration_ns, 1, MAX_NANOSECONDS, f"{field}.points[{index}].duration_ns")
            _in_range(point.num_sequences, 1, MAX_DIMENSION, f"{field}.points[{index}].num_sequences")
            _in_range(point.num_tokens, 1, MAX_DIMENSION, f"{field}.points[{index}].num_tokens")
            _in_range(point.past_tokens, 0, MAX_DIMENSION, f"{field}.points[{index}].past_tokens")
    twice = [name for name, count in Counter(d.device_id for d in problem.devices).items() if count > 1]
    _require(not twice, "problem.devices", f"has device {twice[:1]} more than once")


def _check_workload(problem: PlanningProblem) -> None:
    _require(bool(problem.workload), "problem.workload", "is empty; there is nothing to plan for")
    for number, bucket in enumerate(problem.workload):
        field = f"problem.workload[{number}]"
        _in_range(bucket.prompt_tokens, 1, MAX_DIMENSION, f"{field}.prompt_tokens")
        _in_range(bucket.output_tokens, 0, MAX_DIMENSION, f"{field}.output_tokens")
        _in_range(bucket.count, 1, MAX_REQUESTS, f"{field}.count")
        length, most = bucket.prompt_tokens + bucket.output_tokens, problem.shape.max_positions
        _require(length <= most, field, f"has sequences of {length} tokens; the model accepts {most}")
    _in_range(sum(bucket.count for bucket in problem.workload), 1, MAX_REQUESTS, "problem.workload.count")


def _check_sensitivities(sensitivities: tuple[LayerSensitivity, ...], num_layers: int) -> None:
    seen: set[tuple[int, str]] = set()
    for number, sensitivity in enumerate(sensitivities):
        field = f"problem.sensitivities[{number}]"
        _in_range(sensitivity.layer, 0, num_layers - 1, f"{field}.layer")
        _check_schemes([sensitivity.scheme], f"{field}.scheme")
        _not_negative(sensitivity.omega, f"{field}.omega")
        key = sensitivity.layer, sensitivity.scheme
        _require(key not in seen, field, f"repeats layer {sensitivity.layer} at {sensitivity.scheme}")
        seen.add(key)


def _check_options(options: PlanOptions, num_devices: int, num_layers: int) -> None:
    field = "problem.options"
    for name in ("quality_weight", "quality_budget", "time_limit_s", "optimality_gap", "deadline_s"):
        _not_negative(getattr(options, name) or 0.0, f"{field}.{name}")
    objective, objectives = options.effective_objective, ", ".join(OBJECTIVES)
    _require(objective in OBJECTIVES, f"{field}.objective", f"is '{objective}'; it can be {objectives}")
    _require(not options.deadline_s or objective == "cost", f"{field}.deadline_s", "needs the objective cost")
    _check_schemes(options.allowed_schemes, f"{field}.allowed_schemes")
    _check_layer_schemes(options, num_layers)
    _check_layer_groups(options, num_layers)
    known = ", ".join(map(str, GROUP_SIZES))
    size = options.effective_group_size
    _require(size in GROUP_SIZES, f"{field}.group_size", f"is {size}; it can be {known}")
    _in_range(options.prefill_micro_batch, 0, MAX_REQUESTS, f"{field}.prefill_micro_batch")
    _in_range(options.decode_micro_batch, 0, MAX_REQUESTS, f"{field}.decode_micro_batch")
    _in_range(options.num_lanes, 0, MAX_LANES, f"{field}.num_lanes")
    num_groups = num_layers // (options.layers_per_group or 1)
    fits = not options.use_all_devices or num_devices <= num_groups
    what = "layers" if num_groups == num_layers else "groups of layers"
    _require(fits, f"{field}.use_all_devices", f"cannot be met: {num_devices} devices, {num_groups} {what}")


def _check_layer_schemes(options: PlanOptions, num_layers: int) -> None:
    field, given = "problem.options.layer_schemes", options.layer_schemes
    _check_schemes(given, field)
    _require(len(given) in {0, num_layers}, field, f"has {len(given)} schemes; the model has {num_layers} layers")
    _require(not (given and options.allowed_schemes), field, "leaves nothing to choose; leave out allowed_schemes")


def _check_layer_groups(options: PlanOptions, num_layers: int) -> None:
    field, size = "problem.options.layers_per_group", options.layers_per_group
    _in_range(size, 0, num_layers, field)
    _require(num_layers % (size or 1) == 0, field, f"is {size}, which does not divide {num_layers} layers")
    _require(size <= 1 or not options.layer_schemes, field, "has no meaning where each layer's scheme is given")


def _check_micro_batch(problem: PlanningProblem) -> None:
    widest = max(device.description.activation_bytes for device in problem.devices)
    most = max_frame_rows(problem.shape.hidden_size * widest)
    xi = problem.options.decode_micro_batch
    _require(xi <= most, "problem.options.decode_micro_batch", f"is {xi}; one frame holds {most} sequences")


def _check_prices(problem: PlanningProblem) -> None:
    if problem.options.effective_objective == "cost":
        free = [device.device_id for device in problem.devices if not device.usd_per_h]
        _require(not free, "problem.devices.usd_per_h", f"is not known for {', '.join(free)}; give prices")


def _check_stages(problem: PlanningProblem, plan: Plan) -> None:
    known = {device.device_id for device in problem.devices}
    used: set[str] = set()
    end_layer = 0
    for number, stage in enumerate(plan.stages):
        field = f"plan.stages[{number}]"
        _require(stage.device_id in known, f"{field}.device_id", f"names '{stage.device_id}', not one of the devices")
        _require(stage.device_id not in used, f"{field}.device_id", f"uses {stage.device_id} a second time")
        used.add(stage.device_id)
        follows = f"is {stage.first_layer}; layers must follow one another, so it has to be {end_layer}"
        _require(stage.first_layer == end_layer, f"{field}.first_layer", follows)
        _require(bool(stage.layers), f"{field}.layers", "is empty; leave the device out instead")
        _check_schemes([layer.scheme for layer in stage.layers], f"{field}.layers.scheme")
        for layer in stage.layers:
            _require(layer.group_size in GROUP_SIZES, f"{field}.layers.group_size", f"is {layer.group_size}")
        end_layer = stage.end_layer
    covers = end_layer == problem.shape.num_layers
    _require(covers, "plan.stages", f"hold {end_layer} layers; the model has {problem.shape.num_layers}")


def _check_schemes(schemes: Iterable[str], field: str) -> None:
    for scheme in schemes:
        _require(scheme in SCHEMES, field, f"names '{scheme}'; known schemes are {', '.join(SCHEMES)}")


def _in_range(value: int, least: int, most: int, field: str) -> None:
    _require(least <= value <= most, field, f"is {value}; it must be from {least:,} to {most:,}")


def _not_negative(value: float, field: str) -> None:
    _require(isfinite(value) and value >= 0, field, f"is {value}; it must be a number that is not negative")


def _require(condition: bool, field: str, what: str) -> None:  # noqa: FBT001 reads like assert
    if not condition:
        raise InvalidInputError(f"{field} {what}.", subject=field)
