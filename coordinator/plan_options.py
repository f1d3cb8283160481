"""Which options of a plan can be followed at all."""

from llmpq.errors import InvalidInputError
from llmpq.model import ModelShape
from llmpq.plan import INDICATORS, ROUNDING_METHODS, STRATEGIES, PlanOptions
from llmpq.schemes import GROUP_SIZES, SCHEMES

#: Sequences of a micro-batch, and micro-batches in flight, that may be asked for; no device computes as many at once.
MAX_SEQUENCES = 65_536


def check_plan_options(options: PlanOptions) -> None:
    """Refuses options that no planner could follow.

    Raises:
        InvalidInputError: Names the option and what it may be.
    """
    _check_schemes(options)
    if options.effective_group_size not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise _out_of_range("group_size", f"no group size {options.group_size}; there are {sizes}")
    check_strategy(options.strategy, "plan_options.strategy")
    if options.rounding.effective_method not in ROUNDING_METHODS:
        known = ", ".join(ROUNDING_METHODS)
        raise _out_of_range("rounding.method", f"no method '{options.rounding.method}'; there are {known}")
    if options.effective_indicator not in INDICATORS:
        raise _out_of_range("indicator", f"no indicator '{options.indicator}'; there are {', '.join(INDICATORS)}")
    for name in ("prefill_micro_batch", "decode_micro_batch", "num_lanes"):
        if getattr(options, name) > MAX_SEQUENCES:
            raise _out_of_range(name, f"{getattr(options, name)} is more than {MAX_SEQUENCES:,}")
    for name in ("quality_weight", "quality_budget", "time_limit_s", "optimality_gap"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < float("inf"):
            raise _out_of_range(name, f"{value} is not a number from 0 up")


def check_layers(options: PlanOptions, shape: ModelShape) -> None:
    """Refuses schemes for more or fewer layers than the model has, and groups that its layers cannot be cut into.

    Raises:
        InvalidInputError: Says how many there are and how many there must be.
    """
    if shape.num_layers % (options.layers_per_group or 1):
        raise _out_of_range("layers_per_group", f"{options.layers_per_group} does not divide {shape.num_layers} layers")
    num_given = len(options.layer_schemes)
    if num_given not in {0, shape.num_layers}:
        raise _out_of_range("layer_schemes", f"{num_given} schemes for a model of {shape.num_layers} layers")


def check_strategy(name: str, field: str) -> None:
    """Refuses a strategy that no planner has; empty is the default.

    Raises:
        InvalidInputError: Names the field and what it may be.
    """
    if name and name not in STRATEGIES:
        message = f"{field}: no strategy '{name}'; there are {', '.join(STRATEGIES)}."
        raise InvalidInputError(message, subject=field)


def _check_schemes(options: PlanOptions) -> None:
    for name in ("allowed_schemes", "layer_schemes"):
        unknown = [scheme for scheme in getattr(options, name) if scheme not in SCHEMES]
        if unknown:
            raise _out_of_range(name, f"no scheme '{unknown[0]}'; there are {', '.join(SCHEMES)}")
    if options.layer_schemes and options.allowed_schemes:
        raise _out_of_range("layer_schemes", "nothing is left to choose; leave out allowed_schemes")


def _out_of_range(name: str, problem: str) -> InvalidInputError:
    return InvalidInputError(f"plan_options.{name}: {problem}.", subject=f"plan_options.{name}")
