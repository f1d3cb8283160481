"""The most likely tokens of a head in 16 bits, most of which is never read.

A copy of the vocabulary in 8 bits gives every logit to within a bound; only tokens that may be the most likely one by
these bounds are multiplied exactly. What comes out is the exact head's answer, up to the rounding of sums in float32,
for half of the bytes and by integers.
"""

from dataclasses import replace

import torch

from quantizer.native.library import Kernels
from quantizer.native.search import find_largest
from quantizer.rounding import round_rows
from quantizer.tiles import TILE_OUTPUTS, TiledWeight

#: Rows of the vocabulary that are rounded at a time, whole tiles.
_BLOCK_ROWS = 256 * TILE_OUTPUTS


class VocabularyScreen:
    """Finds the row of a matrix whose product with x is the largest.

    Args:
        exact: (vocabulary, embedding), float16 or bfloat16, contiguous, on a CPU.
        kernels: Of this process.
    """

    def __init__(self, exact: torch.Tensor, kernels: Kernels) -> None:
        self._exact = exact
        self._kernels = kernels
        self._norms = torch.empty(len(exact))
        self._errors = torch.empty(len(exact))
        self._rounded = self._round()

    @property
    def memory_bytes(self) -> int:
        """Bytes of the copy and of what bounds its errors."""
        return self._rounded.nbytes + self._norms.nbytes + self._errors.nbytes

    def most_likely(self, x: torch.Tensor) -> torch.Tensor:
        """The tokens of the largest logits, the lowest ids among equals: (rows,) int64 of (rows, embedding)."""
        return find_largest(
            self._kernels, x.float(), self._exact, self._rounded, errors=self._errors, norms=self._norms
        )

    def _round(self) -> TiledWeight:
        """A block after another: the matrix may be larger than several layers together."""
        codes = scales = torch.empty(0)
        for first in range(0, len(self._exact), _BLOCK_ROWS):
            rows = slice(first, first + _BLOCK_ROWS)
            block = self._exact[rows].float()
            rounded = round_rows(block)
            stood_for = rounded.dequantized()
            self._norms[rows] = stood_for.norm(dim=1)
            self._errors[rows] = (block - stood_for).norm(dim=1)
            weight = TiledWeight.of(rounded)
            if first == 0:
                num_tiles = -(-len(self._exact) // TILE_OUTPUTS)
                codes, scales = (part.new_empty(num_tiles, *part.shape[1:]) for part in (weight.codes, weight.scales))
            tiles = slice(first // TILE_OUTPUTS, first // TILE_OUTPUTS + len(weight.codes))
            codes[tiles], scales[tiles] = weight.codes, weight.scales
        return replace(weight, shape=self._exact.shape, codes=codes, scales=scales)
