"""Blocks of rows: matrices are worked through in pieces whose fp32 form is still in the cache when it is used."""

from collections.abc import Sequence

import torch

#: Elements of a block: 2 MiB of fp32. Smaller ones fit the second-level cache better but lose more to per-block calls
#: (a quarter of the time of few rows at 1 MiB); larger ones gain little more.
BLOCK_ELEMENTS = 2**19


def rows_per_block(row_elements: int) -> int:
    """Rows of `row_elements` elements that make up a block; at least 1."""
    return max(1, BLOCK_ELEMENTS // row_elements)


def blocks_of_rows(matrix: torch.Tensor) -> Sequence[torch.Tensor]:
    """Views of a (rows, columns) matrix, a block each."""
    return torch.split(matrix, rows_per_block(matrix.shape[1]))
