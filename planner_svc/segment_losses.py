"""What quantizing costs in every segment: consecutive layers, so many of them at each scheme.

The least sum of omega of the layers [a, a + n) with given counts of schemes follows from those of the n - 1 layers
before the last one, which has one of the schemes:

    LOSS[a, n, c] = min over k of LOSS[a, n - 1, c - e_k] + OMEGA[a + n - 1, k]

It depends on omega alone, so that one table serves all candidates of a search.
"""

import numpy as np
from numpy.typing import NDArray

from planner_svc.assignment import Floats

Integers = NDArray[np.int64]

#: Numbers in a table, at most: 128 MiB.
_MAX_NUMBERS = 2**24


class SegmentLosses:
    """A table that grows to what is asked for.

    Args:
        omega: (layers, schemes); infinite where the layer may not have the scheme.

    Attributes:
        counts: For each number n of layers, the (counts, schemes) that add up to n.
        losses: For each n, the least sum of omega: (counts, layers - n + 1), by the first layer.
    """

    def __init__(self, omega: Floats) -> None:
        self._omega = omega
        self._longest, self._max_counts = 0, np.zeros(omega.shape[1], dtype=np.int64)
        self.counts: list[Integers] = []
        self.losses: list[Floats] = []

    def can_cover(self, longest: int, max_counts: Integers) -> bool:
        """Grows to segments of `longest` layers with at most (schemes) `max_counts`; False if that is too large."""
        if longest <= self._longest and (max_counts <= self._max_counts).all():
            return True
        longest, max_counts = max(longest, self._longest), np.maximum(max_counts, self._max_counts)
        if self._size(longest, max_counts) > _MAX_NUMBERS:
            return False
        self._longest, self._max_counts = longest, max_counts
        self._fill()
        return True

    def _size(self, longest: int, max_counts: Integers) -> int:
        """Numbers of such a table: coefficients of prod_k (1 + x + ... + x^max_counts[k]), for each first layer."""
        ways = np.ones(1)
        for most in max_counts:
            ways = np.convolve(ways, np.ones(most + 1))[: longest + 1]
        return int(ways @ (len(self._omega) + 1 - np.arange(len(ways))))

    def _fill(self) -> None:
        num_layers, num_schemes = self._omega.shape
        places = (self._longest + 1) ** np.arange(num_schemes)  # counts as digits: sorted numbers find them again
        self.counts, self.losses = [np.zeros((1, num_schemes), dtype=np.int64)], [np.zeros((1, num_layers + 1))]
        for length in range(1, self._longest + 1):
            shorter, before = self.counts[-1], self.losses[-1][:, :-1]
            may_grow = [np.flatnonzero(shorter[:, k] < self._max_counts[k]) for k in range(num_schemes)]
            grown = [shorter[rows] @ places + places[k] for k, rows in enumerate(may_grow)]
            numbers = np.unique(np.concatenate(grown))
            losses = np.full((len(numbers), num_layers - length + 1), np.inf)
            for k, rows in enumerate(may_grow):
                at = np.searchsorted(numbers, grown[k])
                losses[at] = np.minimum(losses[at], before[rows] + self._omega[length - 1 :, k])
            self.counts.append(numbers[:, None] // places % (self._longest + 1))
            self.losses.append(losses)
