"""Whether layers fit the stages at all, and if not, how much memory is missing where.

Stages hold consecutive layers in order, at least one each. So what matters of the first j stages is only where they can
end: the set of layers e such that they can hold [0, e). These sets are computed stage by stage.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def fits(layer_bytes: Floats, capacity_bytes: Floats) -> bool:
    """Whether the stages can hold all layers.

    Args:
        layer_bytes: (stages, layers) bytes of each layer on each stage; infinite where it cannot run.
        capacity_bytes: (stages) bytes for layers; may be negative.
    """
    return bool(_ends(layer_bytes, capacity_bytes)[-1, -1])


def short_bytes(layer_bytes: Floats, capacity_bytes: Floats) -> Floats:
    """(stages) bytes that are missing; zeros if the layers fit. Arguments as for `fits`.

    What is missing is charged to the one stage where it is least. Where one stage alone cannot make up for it, each is
    first given what it needs to hold the largest layer that it can run. Infinite if no memory would help.
    """
    largest = np.where(np.isfinite(layer_bytes), layer_bytes, 0.0).max(axis=1)
    for short in (np.zeros(len(largest)), np.maximum(largest - capacity_bytes, 0.0)):
        missing = _missing_bytes(layer_bytes, capacity_bytes + short)
        if np.isfinite(missing.min()):
            break
    short[missing.argmin()] += max(missing.min(), 0.0)
    return short


def _missing_bytes(layer_bytes: Floats, capacity_bytes: Floats) -> Floats:
    """(stages) bytes that each stage would need beyond its capacity for all layers to fit; negative if it has more."""
    begins = _ends(layer_bytes, capacity_bytes)
    ends = _ends(layer_bytes[::-1, ::-1], capacity_bytes[::-1])[::-1, ::-1]
    least = [_least_bytes(sizes, *cuts) for sizes, *cuts in zip(layer_bytes, begins[:-1], ends[1:], strict=True)]
    return np.array(least) - capacity_bytes


def _ends(layer_bytes: Floats, capacity_bytes: Floats) -> Bools:
    """(stages + 1, layers + 1): whether the first j stages can hold exactly the layers [0, e)."""
    num_stages, num_layers = layer_bytes.shape
    ends = np.zeros((num_stages + 1, num_layers + 1), dtype=bool)
    ends[0, 0] = True
    for stage, capacity in enumerate(capacity_bytes):
        before, barrier = _sums(layer_bytes[stage])
        starts = np.flatnonzero(ends[stage])
        furthest = np.minimum(np.searchsorted(before, before[starts] + capacity, side="right") - 1, barrier[starts])
        for start, end in zip(starts, furthest, strict=True):
            ends[stage + 1, start + 1 : end + 1] = True
    return ends


def _least_bytes(layer_bytes: Floats, begins: Bools, ends: Bools) -> float:
    """Bytes of the smallest range of layers that begins and ends where it can; infinite if there is none."""
    before, barrier = _sums(layer_bytes)
    runs = np.arange(len(before))[None, :] <= barrier[:, None]
    is_possible = np.triu(begins[:, None] & ends[None, :] & runs, k=1)
    return float(np.where(is_possible, before[None, :] - before[:, None], np.inf).min())


def _sums(layer_bytes: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """(layers + 1) bytes of the layers before each, and the first layer from it on that cannot run, if any."""
    can_run = np.isfinite(layer_bytes)
    before = np.concatenate(([0.0], np.where(can_run, layer_bytes, 0.0).cumsum()))
    num_layers = len(layer_bytes)
    blocked = np.append(np.where(can_run, num_layers, np.arange(num_layers)), num_layers)
    return before, np.minimum.accumulate(blocked[::-1])[::-1]
