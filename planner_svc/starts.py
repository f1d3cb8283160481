"""Assignments to start a local search from: one precision, split by speed."""

from collections.abc import Iterator

import numpy as np

from planner_svc.assignment import AssignmentProblem
from planner_svc.balance import balanced_counts, balanced_split
from planner_svc.milp import Assignment


def starts(problem: AssignmentProblem) -> Iterator[Assignment]:
    """For each scheme the split that is best balanced over the whole batch, stages that lack it taking their smallest.

    Where layers are given their schemes, the one split of those.
    """
    schedule = problem.schedule
    rounds = schedule.num_lanes * schedule.num_rounds
    layer_s = schedule.num_frames * problem.layer_prefill_s + rounds * problem.layer_decode_s
    outside_s = schedule.num_frames * problem.outside_prefill_s + rounds * problem.outside_decode_s
    if not problem.is_allowed.all():
        given = [int(scheme) for scheme in problem.is_allowed.argmax(axis=1)]
        split = balanced_split(given, layer_s, outside_s, problem.layer_bytes, problem.capacity_bytes)
        if split is not None:
            yield split
        return
    smallest = np.where(problem.is_usable, problem.layer_bytes, np.inf).argmin(axis=1)
    stages = np.arange(problem.num_stages)
    for scheme in range(problem.num_schemes):
        schemes = np.where(problem.is_usable[:, scheme], scheme, smallest)
        room = np.floor(problem.capacity_bytes / problem.layer_bytes[stages, schemes])
        counts = balanced_counts(problem.num_layers, layer_s[stages, schemes], outside_s, room)
        if counts is not None:
            yield tuple((int(scheme),) * int(count) for scheme, count in zip(schemes, counts, strict=True))


def price(problem: AssignmentProblem, start: Assignment) -> float:
    """The objective of an assignment in seconds; infinite where it does not fit."""
    counts = np.array([np.bincount(stage, minlength=problem.num_schemes) for stage in start], dtype=float)
    schemes = np.concatenate([np.array(stage) for stage in start])
    loss = problem.omega[np.arange(problem.num_layers), schemes].sum()
    return float(problem.objectives_s(counts[None], np.array([loss]))[0])
