"""Tensors of a checkpoint that are not what they should be are refused by their names."""

from collections.abc import Iterator

import torch

from llmpq.errors import InvalidInputError
from quantizer.finite import is_all_finite
from stage_server.checkpoint import Checkpoint

#: What weights may be stored in; float8 means nothing without scales, which none of the formats read has.
_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
#: Elements of a matrix that are read at a time where it is read by rows.
BLOCK_ELEMENTS = 2**21


def read_floats(checkpoint: Checkpoint, name: str, *dimensions: int) -> torch.Tensor:
    """A tensor of floats of these dimensions.

    Raises:
        NotFoundError: It is missing.
        InvalidInputError: It has another type or shape, or holds NaN or infinity.
    """
    tensor = checkpoint.tensor(name)
    _check(name, tensor, tuple(tensor.shape), dimensions)
    return tensor


def read_float_rows(checkpoint: Checkpoint, name: str, num_rows: int, num_columns: int) -> Iterator[torch.Tensor]:
    """The rows of a matrix of floats, in blocks of at most `BLOCK_ELEMENTS`; raises as `read_floats`."""
    stored_rows = checkpoint.num_rows(name)
    if stored_rows != num_rows:
        raise wrong_tensor(name, f"has {stored_rows} rows, but the configuration says {num_rows}")
    rows_at_a_time = max(BLOCK_ELEMENTS // num_columns, 1)
    for first in range(0, num_rows, rows_at_a_time):
        block = checkpoint.rows(name, first, min(first + rows_at_a_time, num_rows))
        _check(name, block, (num_rows, *block.shape[1:]), (num_rows, num_columns))
        yield block


def _check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises InvalidInputError if all or some rows of a tensor of some shape are not what they should be."""
    if shape != expected or tensor.dtype not in _FLOATS:
        problem = f"is {tensor.dtype} of shape {shape}, but the configuration says floats of shape {expected}"
        raise wrong_tensor(name, problem)
    if not is_all_finite(tensor):
        raise wrong_tensor(name, "holds NaN or infinity: the checkpoint is damaged")


def wrong_tensor(name: str, problem: str) -> InvalidInputError:
    """The error for a tensor with a problem."""
    return InvalidInputError(f"Tensor '{name}' {problem}.", reason="BAD_TENSOR", subject=name)
