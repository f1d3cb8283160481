"""Blocks of rows: matrices are worked through in pieces whose fp32 form stays in the cache of one core."""

from collections.abc import Sequence

import torch

#: Elements of a block: 1 MiB of fp32, which fits the second-level cache of current cores.
BLOCK_ELEMENTS = 2**18


def rows_per_block(row_elements: int) -> int:
    """Rows of `row_elements` elements that make up a block; at least 1."""
    return max(1, BLOCK_ELEMENTS // row_elements)


def blocks_of_rows(matrix: torch.Tensor) -> Sequence[torch.Tensor]:
    """Views of a (rows, columns) matrix, a block each."""
    return torch.split(matrix, rows_per_block(matrix.shape[1]))
