"""Uniform: what a user does by hand."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from llmpq.plan import Plan
from planner_svc.orders import Order
from planner_svc.search import OnProgress
from planner_svc.space import Candidate, SearchSpace
from planner_svc.strategies.common import all_devices, most_exact_plan, numbers

T = TypeVar("T")


def uniform(space: SearchSpace, _deadline: float, _on_progress: OnProgress) -> Plan:
    """Layers split evenly over all devices in the given order, at the highest precision that fits everywhere.

    xi is requests / devices, as in the paper; eta and lanes are those with the least predicted time. (The paper's code
    keeps the last eta that it tries.) Raises as `common.most_exact_plan`.
    """
    return most_exact_plan(
        space,
        "uniform",
        paper_candidates(space, all_devices(space)),
        lambda candidate, schemes: [even(numbers(space, schemes), len(candidate.order))],
    )


def paper_candidates(space: SearchSpace, order: Order) -> list[Candidate]:
    """Xi = requests / devices; every eta and number of lanes."""
    xi = space.options.decode_micro_batch or -(-space.cost.workload.num_requests // len(order))
    xi = min(xi, space.cost.max_frame_rows(order))
    settings = {replace(setting, decode_micro_batch=xi): None for setting in space.settings(order)}
    return [Candidate(order, setting) for setting in settings]


def even(layers: Sequence[T], num_stages: int) -> tuple[tuple[T, ...], ...]:
    """Consecutive shares of the layers, the first ones larger by one where they cannot be equal."""
    share, rest = divmod(len(layers), num_stages)
    cuts = [stage * share + min(stage, rest) for stage in range(num_stages + 1)]
    return tuple(tuple(layers[first:end]) for first, end in pairwise(cuts))
