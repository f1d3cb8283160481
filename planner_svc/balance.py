"""The split of layers over unlike stages that makes the slowest one as fast as it can be."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from planner_svc.assignment import NEVER_S
from planner_svc.milp import Assignment

Floats = NDArray[np.float64]


def balanced(
    schemes: list[int], layer_s: Floats, outside_s: Floats, layer_bytes: Floats, capacity_bytes: Floats
) -> Assignment | None:
    """The split with the least time of the slowest stage; None if none fits. Arguments as for `balanced_split`."""
    first = schemes[0]
    if any(scheme != first for scheme in schemes):
        return balanced_split(schemes, layer_s, outside_s, layer_bytes, capacity_bytes)
    if not np.isfinite(layer_s[:, first]).all():
        return None
    room = np.floor(capacity_bytes / layer_bytes[:, first])
    counts = balanced_counts(len(schemes), layer_s[:, first], outside_s, room)
    return None if counts is None else tuple((first,) * int(count) for count in counts)


def balanced_counts(num_layers: int, layer_s: Floats, outside_s: Floats, room: Floats) -> Floats | None:
    """Least max_j(OUTSIDE[j] + c[j] * LAYER[j]) for layers that are all alike; None if they do not fit.

    Layers are dealt one by one to the stage that is then the least slow, which is optimal for equal layers: after one
    for each stage, the least of all times that stages can come to are taken, as many as there are layers left.

    Args:
        num_layers: Layers to deal.
        layer_s: (stages) seconds of a layer.
        outside_s: (stages) seconds beside the layers.
        room: (stages) layers that a stage can hold.

    Returns:
        (stages) layers of each stage, at least 1.
    """
    num_left = num_layers - len(layer_s)
    if room.min() < 1 or room.sum() < num_layers or num_left < 0:
        return None
    counts = np.arange(2, num_left + 2)
    ends_s = np.where(counts <= room[:, None], outside_s[:, None] + counts * layer_s[:, None], np.inf)
    dealt = np.argsort(ends_s, axis=None, kind="stable")[:num_left]
    return np.bincount(dealt // max(num_left, 1), minlength=len(layer_s)).astype(np.float64) + 1


def balanced_split(
    schemes: list[int], layer_s: Floats, outside_s: Floats, layer_bytes: Floats, capacity_bytes: Floats
) -> Assignment | None:
    """Least max_j(OUTSIDE[j] + sum of LAYER[j, scheme] over its layers), at least one layer each; None if none fits.

    Dynamic program over stages and layers: F[j, e] = min over s < e of max(F[j-1, s], time of layers [s, e) on j).

    Args:
        schemes: The scheme of each layer.
        layer_s: (stages, schemes) seconds of a layer; infinite where the stage cannot run it.
        outside_s: (stages) seconds beside the layers.
        layer_bytes: (stages, schemes) bytes of a layer.
        capacity_bytes: (stages) bytes for layers.
    """
    num_stages, num_layers = len(outside_s), len(schemes)
    best = np.full((num_stages + 1, num_layers + 1), np.inf)
    best[0, 0] = 0.0
    cut = np.zeros((num_stages + 1, num_layers + 1), dtype=int)
    for stage in range(num_stages):
        seconds = np.concatenate(([0.0], np.cumsum(np.minimum(layer_s[stage, schemes], NEVER_S))))
        sizes = np.concatenate(([0.0], np.cumsum(layer_bytes[stage, schemes])))
        for end in range(stage + 1, num_layers + 1):
            starts = np.arange(stage, end)
            times = np.maximum(best[stage, starts], outside_s[stage] + seconds[end] - seconds[starts])
            times[sizes[end] - sizes[starts] > capacity_bytes[stage]] = np.inf
            at = int(times.argmin())
            best[stage + 1, end], cut[stage + 1, end] = times[at], starts[at]
    if best[-1, -1] >= NEVER_S:
        return None
    cuts = [num_layers]
    for stage in range(num_stages, 0, -1):
        cuts.append(int(cut[stage, cuts[-1]]))
    cuts.reverse()
    return tuple(tuple(schemes[first:end]) for first, end in pairwise(cuts))
