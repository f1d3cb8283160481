"""The most likely tokens of a head in 16 bits, most of which is never read.

A copy of the vocabulary in 8 bits gives every logit to within a bound; only tokens that may be the most likely one by
these bounds are multiplied exactly. What comes out is the exact head's answer, for half of the bytes and by integers.
The bounds are those of Cauchy and Schwarz: x w - x' w' = x (w - w') + (x - x') w', of which the first is at most
|x| |w - w'|, and the second |x - x'| |w'|.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from quantizer.native.library import Kernels
from quantizer.rounded import RowRounded
from quantizer.rounding import round_rows
from quantizer.tiles import ACTIVATION_GROUP_SIZE, TiledWeight

#: Rows of the vocabulary that are rounded at a time, whole tiles.
_BLOCK_ROWS = 4096
#: What rounding in sums of float32 may add to a logit, as a share of |x| |w|; sums of 10,000 products stay far below.
_SUM_ERROR = 1e-5
_INT8_MAX = 127
_TILE = 16
#: Logits whose maximum is looked at before they are.
_SCAN = 64


class VocabularyScreen:
    """Finds the row of a matrix whose product with x is the largest.

    Args:
        exact: (vocabulary, embedding), float16 or bfloat16, on a CPU.
        kernels: Of this process.
    """

    def __init__(self, exact: torch.Tensor, kernels: Kernels) -> None:
        self._exact = exact
        self._kernels = kernels
        self._rounded = TiledWeight.of(_empty_like(exact))
        self._norms = torch.empty(len(exact))
        self._errors = torch.empty(len(exact))
        for first in range(0, len(exact), _BLOCK_ROWS):
            self._round(slice(first, min(first + _BLOCK_ROWS, len(exact))))
        self._largest_error, self._largest_norm = self._errors.max(), self._norms.max()

    @property
    def memory_bytes(self) -> int:
        """Bytes of the copy and of the bounds."""
        return self._rounded.nbytes + self._norms.nbytes + self._errors.nbytes

    def most_likely(self, x: torch.Tensor) -> torch.Tensor:
        """The tokens of the largest logits, the lowest ids among equals: (rows,) int64 of (rows, embedding)."""
        x = x.float()
        logits = self._kernels.multiply_codes(x, self._rounded, None, unpacks_first=False)
        size, rounding = x.norm(dim=1), _rounding_error(x)
        # First by one bound for all tokens, and one look at each logit; then by the bounds of those that are left.
        loosest = size * self._largest_error + rounding * self._largest_norm
        rows, candidates = _at_least(logits, lambda tops: tops - 2 * loosest)
        near, bounds = logits[rows, candidates], size[rows] * self._errors[candidates]
        bounds += rounding[rows] * self._norms[candidates]
        surely = logits.new_full((len(x),), -torch.inf).scatter_reduce(0, rows, near - bounds, "amax")
        may_win = near + bounds >= surely[rows]
        return self._best(x, rows[may_win], candidates[may_win])

    def _best(self, x: torch.Tensor, rows: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Of each row's candidates the one with the largest exact logit; 0 for rows of NaN, which have none."""
        exact = (self._exact[candidates].float() * x[rows]).sum(dim=1)
        best = exact.new_full((len(x),), -torch.inf).scatter_reduce(0, rows, exact, "amax")
        wins = exact == best[rows]
        tokens = candidates.new_zeros(len(x))
        return tokens.scatter_reduce(0, rows[wins], candidates[wins], "amin", include_self=False)

    def _round(self, rows: slice) -> None:
        block = self._exact[rows].float()
        rounded = round_rows(block)
        tiles = slice(rows.start // _TILE, -(-rows.stop // _TILE))
        weight = TiledWeight.of(rounded)
        self._rounded.codes[tiles], self._rounded.scales[tiles] = weight.codes, weight.scales
        stood_for = rounded.dequantized()
        self._norms[rows] = stood_for.norm(dim=1)
        self._errors[rows] = (block - stood_for).norm(dim=1)


def _at_least(
    logits: torch.Tensor, threshold: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the (rows, vocabulary) logits that reach their row's threshold, made of its maximum.

    The maxima of blocks tell most of them apart: the logits are read once.
    """
    blocks = logits.view(len(logits), -1, math.gcd(logits.shape[1], _SCAN))
    peaks = blocks.amax(dim=2)
    thresholds = threshold(peaks.amax(dim=1))
    rows, peak = (peaks >= thresholds[:, None]).nonzero(as_tuple=True)
    hit, column = (blocks[rows, peak] >= thresholds[rows, None]).nonzero(as_tuple=True)
    return rows[hit], peak[hit] * blocks.shape[2] + column


def _rounding_error(x: torch.Tensor) -> torch.Tensor:
    """At most |x - x'| of each row, x' being x as the kernel rounds it: half a step of its group; and that of sums."""
    padded = functional.pad(x, (0, -x.shape[1] % ACTIVATION_GROUP_SIZE))
    largest = padded.view(len(x), -1, ACTIVATION_GROUP_SIZE).abs().amax(dim=2)
    half_steps = largest.norm(dim=1).mul_(ACTIVATION_GROUP_SIZE**0.5 / 2 / _INT8_MAX)
    error: torch.Tensor = half_steps.add_(x.norm(dim=1), alpha=_SUM_ERROR)
    return error


def _empty_like(exact: torch.Tensor) -> RowRounded:
    return RowRounded(torch.empty(exact.shape, dtype=torch.int8), torch.empty(len(exact)))
