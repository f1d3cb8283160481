"""What the strategies that use one precision share."""

from collections.abc import Callable, Iterable, Iterator

from llmpq.errors import DoesNotFitError, PreconditionError
from llmpq.plan import Plan
from llmpq.schemes import SCHEMES
from planner_svc.milp import Assignment
from planner_svc.orders import Order
from planner_svc.schedule import Setting
from planner_svc.space import Candidate, SearchSpace

#: Assignments at one precision (given scheme by scheme, layer by layer) that a strategy would try for a candidate.
Propose = Callable[[Candidate, tuple[str, ...]], Iterable[Assignment]]


def most_exact_plan(space: SearchSpace, name: str, candidates: Iterable[Candidate], propose: Propose) -> Plan:
    """The fastest proposal at the most exact precision at which any fits.

    Where the options give each layer its scheme, that is the only choice. w8a8 is only taken where w8 is not allowed:
    these strategies are about precision, not about the fastest kernel.

    Raises:
        DoesNotFitError: Not even the most compressed scheme fits.
        PreconditionError: There is no scheme that all devices can run, or the plan exceeds the quality budget.
    """
    candidates = tuple(candidates)
    errors: list[PreconditionError] = [_no_common_scheme()]
    for layer_schemes in _choices(space):
        plans: list[Plan] = []
        for candidate in candidates:
            for assignment in propose(candidate, layer_schemes):
                if not _runs(space, candidate.order, assignment):
                    continue
                try:
                    plans.append(space.plan(candidate, assignment, name))
                except DoesNotFitError as error:
                    errors.append(error)
        if plans:
            return within_budget(space, min(plans, key=lambda plan: plan.estimate.total_s))
    raise min(errors, key=lambda error: int(error.metadata.get("short_bytes", "0")) or float("inf"))


def one_micro_batch_size(space: SearchSpace, order: Order) -> list[Setting]:
    """Settings of planners that know one phase: eta = xi, and a micro-batch for each stage.

    The size is requests / stages, as in LLM-PQ's evaluation, or its halves where memory is short; options may fix it.
    Frames may also have prompts cut; the shortest come first, because their temporaries take the least memory.
    """
    num_requests = space.cost.workload.num_requests
    num_lanes = space.options.num_lanes or min(len(order), num_requests)
    largest = min(-(-num_requests // num_lanes), space.cost.max_frame_rows(order))
    sizes = [space.options.decode_micro_batch] if space.options.decode_micro_batch else list(halvings(largest))
    return [
        Setting(prefill_size, size, num_lanes, tokens)
        for size in sizes
        for prefill_size in (space.options.prefill_micro_batch or size,)
        for tokens in reversed(space.prefill_tokens(order, prefill_size))
    ]


def halvings(largest: int) -> Iterator[int]:
    """A number, its half, its quarter, ..., 1; each rounded up."""
    yield largest
    if largest > 1:
        yield from halvings(-(-largest // 2))


def all_devices(space: SearchSpace) -> Order:
    """The devices in the order given, no more than there are layers or groups of them."""
    return tuple(device_id for device_id, schemes in space.usable.items() if schemes)[: space.num_rows]


def within_budget(space: SearchSpace, plan: Plan) -> Plan:
    """The plan; raises PreconditionError if it misses the quality budget or the deadline that the options set."""
    deadline_s = space.options.deadline_s
    if deadline_s and plan.estimate.total_s > deadline_s:
        raise PreconditionError(
            f"The plan of {plan.strategy} takes {plan.estimate.total_s:.4g} s, over the deadline of {deadline_s:g} s.",
            reason="DEADLINE_INFEASIBLE",
            subject="problem.options.deadline_s",
        )
    budget = space.options.quality_budget
    if budget is not None and plan.estimate.quality_loss > budget:
        raise PreconditionError(
            f"The most exact plan of {plan.strategy} that fits has a quality loss of {plan.estimate.quality_loss:.6g}, "
            f"over the budget of {budget:g}. Raise the budget, add memory, or use the strategy llm-pq.",
            reason="QUALITY_BUDGET_INFEASIBLE",
            subject="problem.options.quality_budget",
            metadata={"smallest_quality_loss": repr(plan.estimate.quality_loss)},
        )
    return plan


def numbers(space: SearchSpace, layer_schemes: tuple[str, ...]) -> list[int]:
    """The schemes as the columns of the space's matrices."""
    return [space.schemes.index(scheme) for scheme in layer_schemes]


def _choices(space: SearchSpace) -> list[tuple[str, ...]]:
    """What the layers may have, the most exact first."""
    if space.options.layer_schemes:
        return [space.options.layer_schemes]
    usable = [schemes for schemes in space.usable.values() if schemes]
    common = [scheme for scheme in SCHEMES if all(scheme in schemes for schemes in usable)]
    precise = [scheme for scheme in common if not (scheme == "w8a8" and "w8" in common)]
    return [(scheme,) * space.num_rows for scheme in precise]


def _runs(space: SearchSpace, order: Order, assignment: Assignment) -> bool:
    """Whether each stage's device can run the schemes of its layers."""
    return all(
        {space.schemes[number] for number in stage} <= space.usable[device_id]
        for device_id, stage in zip(order, assignment, strict=True)
    )


def _no_common_scheme() -> PreconditionError:
    return PreconditionError(
        "There is no allowed scheme that all devices can run, or a device cannot run those given to its layers. Allow "
        "others, or use the strategy llm-pq.",
        reason="NO_USABLE_SCHEME",
        subject="problem.options.allowed_schemes",
    )
