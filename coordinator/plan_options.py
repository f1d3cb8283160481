"""Which options of a plan can be followed at all."""

from llmpq.errors import InvalidInputError
from llmpq.plan import PlanOptions
from llmpq.schemes import GROUP_SIZES, SCHEMES


def check_plan_options(options: PlanOptions) -> None:
    """Refuses options that no planner could follow.

    Raises:
        InvalidInputError: Names the option and what it may be.
    """
    unknown = [name for name in options.allowed_schemes if name not in SCHEMES]
    if unknown:
        raise _out_of_range("allowed_schemes", f"no scheme '{unknown[0]}'; there are {', '.join(SCHEMES)}")
    if options.effective_group_size not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise _out_of_range("group_size", f"no group size {options.group_size}; there are {sizes}")
    for name in ("quality_weight", "quality_budget", "time_limit_s"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < float("inf"):
            raise _out_of_range(name, f"{value} is not a number from 0 up")


def _out_of_range(name: str, problem: str) -> InvalidInputError:
    return InvalidInputError(f"plan_options.{name}: {problem}.", subject=f"plan_options.{name}")
