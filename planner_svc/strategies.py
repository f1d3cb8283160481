"""The strategies by name. Each takes a search space and returns an evaluated plan."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from llmpq.errors import DoesNotFitError, PreconditionError
from llmpq.plan import STRATEGIES as STRATEGY_NAMES
from llmpq.plan import Plan
from llmpq.schemes import SCHEMES
from planner_svc.search import OnProgress, Search
from planner_svc.space import Candidate, SearchSpace

T = TypeVar("T")
Strategy = Callable[[SearchSpace, float, OnProgress], Plan]


def llm_pq(space: SearchSpace, deadline: float, on_progress: OnProgress) -> Plan:
    """Everything chosen together (LLM-PQ, section 4); never worse than `uniform`, where the search starts."""
    try:
        incumbent = uniform(space, deadline, on_progress)
    except PreconditionError:
        incumbent = None
    return replace(Search(space, incumbent, deadline, on_progress).run(), strategy="llm-pq")


def uniform(space: SearchSpace, _deadline: float, _on_progress: OnProgress) -> Plan:
    """Layers split evenly over all devices in the given order, at the highest precision that fits everywhere.

    Where the options give each layer its scheme, only the split is even.

    xi is requests / devices, as in the paper; eta and lanes are those with the least predicted time. w8a8 is only
    taken where w8 is not allowed: the strategy is about precision, not about the fastest kernel.

    Raises:
        DoesNotFitError: Not even the most compressed scheme fits.
        PreconditionError: There is no scheme that all devices can run, or the plan exceeds the quality budget.
    """
    order = tuple(space.usable)[: space.cost.shape.num_layers]
    errors: list[PreconditionError] = [_no_common_scheme()]
    for layer_schemes in _uniform_choices(space, order):
        plans, errors = _price(space, order, layer_schemes)
        if plans:
            return _within_budget(space, min(plans, key=space.objective_s))
    raise min(errors, key=lambda error: int(error.metadata.get("short_bytes", "0")))


STRATEGIES: dict[str, Strategy] = dict(zip(STRATEGY_NAMES, (llm_pq, uniform), strict=True))

#: The strategy of a request that names none.
DEFAULT_STRATEGY = STRATEGY_NAMES[0]


def _no_common_scheme() -> PreconditionError:
    return PreconditionError(
        "There is no allowed scheme that all devices can run, or a device cannot run those given to its layers. Allow "
        "others, or use the strategy llm-pq.",
        reason="NO_USABLE_SCHEME",
        subject="problem.options.allowed_schemes",
    )


def _common_schemes(space: SearchSpace, order: tuple[str, ...]) -> list[str]:
    """Schemes that all these devices can run, from the most to the least exact; w8a8 only if w8 is not among them."""
    common = [scheme for scheme in SCHEMES if all(scheme in space.usable[device_id] for device_id in order)]
    return [scheme for scheme in common if not (scheme == "w8a8" and "w8" in common)]


def _uniform_choices(space: SearchSpace, order: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What the layers may have: the schemes given to them, or else one of the common schemes, the most exact first."""
    given = space.options.layer_schemes
    if not given:
        return [(scheme,) * space.cost.shape.num_layers for scheme in _common_schemes(space, order)]
    shares = zip(order, _even(given, len(order)), strict=True)
    return [given] if all(set(share) <= space.usable[device_id] for device_id, share in shares) else []


def _price(
    space: SearchSpace, order: tuple[str, ...], layer_schemes: tuple[str, ...]
) -> tuple[list[Plan], list[PreconditionError]]:
    """The even plans at these schemes, over the micro-batch sizes; and why others do not fit."""
    plans: list[Plan] = []
    errors: list[PreconditionError] = []
    assignment = _even([space.schemes.index(scheme) for scheme in layer_schemes], len(order))
    for candidate in _uniform_candidates(space, order):
        try:
            plans.append(space.plan(candidate, assignment, "uniform"))
        except DoesNotFitError as error:
            errors.append(error)
    return plans, errors


def _uniform_candidates(space: SearchSpace, order: tuple[str, ...]) -> list[Candidate]:
    xi = space.options.decode_micro_batch or -(-space.cost.workload.num_requests // len(order))
    xi = min(xi, space.cost.max_frame_rows(order))
    settings = {replace(setting, decode_micro_batch=xi): None for setting in space.settings(order)}
    return [Candidate(order, setting) for setting in settings]


def _even(layers: Sequence[T], num_stages: int) -> tuple[tuple[T, ...], ...]:
    """Consecutive shares of the layers, the first ones larger by one where they cannot be equal."""
    share, rest = divmod(len(layers), num_stages)
    cuts = [stage * share + min(stage, rest) for stage in range(num_stages + 1)]
    return tuple(tuple(layers[first:end]) for first, end in pairwise(cuts))


def _within_budget(space: SearchSpace, plan: Plan) -> Plan:
    budget = space.options.quality_budget
    if budget is not None and plan.estimate.quality_loss > budget:
        raise PreconditionError(
            f"The most exact uniform plan that fits has a quality loss of {plan.estimate.quality_loss:.6g}, over the "
            f"budget of {budget:g}. Raise the budget, add memory, or use the strategy llm-pq.",
            reason="QUALITY_BUDGET_INFEASIBLE",
            subject="problem.options.quality_budget",
            metadata={"smallest_quality_loss": repr(plan.estimate.quality_loss)},
        )
    return plan
