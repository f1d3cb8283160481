"""Why there is no plan, in words that name the devices and the numbers."""

import time
from collections.abc import Iterable
from dataclasses import replace
from math import ceil, floor, isfinite, log10

import numpy as np

from llmpq.errors import DoesNotFitError, PreconditionError
from planner_svc.cost import CostModel
from planner_svc.milp import AssignmentModel
from planner_svc.search import Search
from planner_svc.space import Candidate, SearchSpace, cannot_run_given_schemes

#: Longest single solve, and longest search for the fastest plan.
_SOLVE_LIMIT_S = 5.0
#: Gap within which a time is the least one.
_EXACT = 1e-4


def explain(space: SearchSpace, *, is_exhaustive: bool) -> PreconditionError:
    """The error of a search that found nothing.

    Args:
        space: What was searched.
        is_exhaustive: Whether it looked everywhere.
    """
    if not any(space.problem(candidate).fits() for candidate in space.candidates):
        return does_not_fit(space, space.candidates)
    if not is_exhaustive:
        return _out_of_time()
    if space.options.deadline_s:
        return _too_late(space)
    return _too_inexact(space)


def _out_of_time() -> PreconditionError:
    return PreconditionError(
        "No plan was found in the time allowed. Raise options.time_limit_s, or fix micro-batch sizes.",
        reason="TIME_LIMIT",
        subject="problem.options.time_limit_s",
    )


def _too_inexact(space: SearchSpace) -> PreconditionError:
    reachable = _smallest_loss(space)
    return PreconditionError(
        f"No plan that fits the memory has a quality loss within {space.options.quality_budget:g}; "
        f"the smallest that can be reached is {ceil(reachable * 1e4) / 1e4:g}. Raise the budget, or add memory.",
        reason="QUALITY_BUDGET_INFEASIBLE",
        subject="problem.options.quality_budget",
        metadata={"smallest_quality_loss": repr(reachable)},
    )


def _too_late(space: SearchSpace) -> PreconditionError:
    """Says what the fastest plan within the other limits takes, if it is known to be too slow."""
    options = replace(space.options, objective="latency", deadline_s=0.0, quality_weight=0.0, optimality_gap=_EXACT)
    fastest_space = SearchSpace(CostModel(replace(space.cost.problem, options=options)))
    search = Search(fastest_space, None, time.monotonic() + _SOLVE_LIMIT_S, lambda _: None)
    fastest = search.run()
    if fastest is None:
        return _too_inexact(space) if search.is_exhaustive else _out_of_time()
    least_s = fastest.estimate.total_s
    if least_s <= space.options.deadline_s:
        return _out_of_time()
    known = "the least possible time is" if fastest.estimate.gap <= _EXACT else "the fastest found takes"
    limits = "fits the memory" + (" and the quality budget" if space.options.quality_budget is not None else "")
    return PreconditionError(
        f"No plan that {limits} ends within {space.options.deadline_s:g} s; {known} {_rounded_up(least_s)} s. "
        "Raise the deadline, or add devices.",
        reason="DEADLINE_INFEASIBLE",
        subject="problem.options.deadline_s",
        metadata={"least_time_s": repr(least_s)},
    )


def _rounded_up(seconds: float) -> str:
    """In four digits, so that who allows so much is allowed enough."""
    unit = 10.0 ** (floor(log10(seconds)) - 3)
    return f"{ceil(seconds / unit) * unit:.4g}"


def does_not_fit(space: SearchSpace, candidates: Iterable[Candidate]) -> PreconditionError:
    """Names the devices that are short in the candidate that is short of the fewest bytes."""
    short, candidate = min(
        ((space.problem(candidate).short_bytes(), candidate) for candidate in candidates),
        key=lambda entry: float(entry[0].sum()),
    )
    order = candidate.order
    if not isfinite(short.sum()):
        return cannot_run_given_schemes()
    short_bytes = {device_id: ceil(size) for device_id, size in zip(order, short, strict=True) if size}
    worst = max(short_bytes, key=lambda device_id: short_bytes[device_id])
    is_given = space.options.layer_schemes
    compressed = "at the schemes given to its layers" if is_given else "however much it is compressed"
    remedy = _remedy(space, candidate, float(short.sum()))
    missing = " and ".join(f"device {device_id} is {size:,} bytes short" for device_id, size in short_bytes.items())
    return DoesNotFitError(
        f"The model does not fit, {compressed}: at best, {missing}. {remedy}Give so much larger "
        "memory budgets, add a device, allow lower precisions, or shorten the sequences.",
        subject=worst,
        metadata={"short_bytes": str(short_bytes[worst])},
    )


def _remedy(space: SearchSpace, candidate: Candidate, short_bytes: float) -> str:
    """How many more of the device that has the most room for layers would do, in words; nothing if none has any."""
    problem = space.problem(candidate)
    roomiest = int(problem.capacity_bytes.argmax())
    layer_bytes = float(np.where(problem.is_usable[roomiest], problem.layer_bytes[roomiest], np.inf).min())
    layers_each = problem.capacity_bytes[roomiest] // layer_bytes
    if layers_each < 1:
        return ""
    num_devices = ceil(ceil(short_bytes / layer_bytes) / layers_each)
    devices = "One more device" if num_devices == 1 else f"{num_devices} more devices"
    return f"{devices} like {candidate.order[roomiest]} would hold it. "


def _smallest_loss(space: SearchSpace) -> float:
    """The least sum of omega that the memory allows; smaller micro-batches never need more memory."""
    loosest = {}
    for candidate in sorted(space.candidates, key=lambda c: (-c.setting.num_slots, -c.setting.prefill_micro_batch)):
        loosest[candidate.order] = candidate
    losses = []
    for candidate in loosest.values():
        problem = space.problem(candidate).quality_only()
        if problem.fits():
            solution = AssignmentModel(problem).solve(problem, time_limit_s=_SOLVE_LIMIT_S, relative_gap=0.0)
            if solution.assignment is not None:
                losses.append(space.plan(candidate, solution.assignment, "").estimate.quality_loss)
    return min(losses)
