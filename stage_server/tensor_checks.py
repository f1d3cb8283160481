"""Tensors of a checkpoint that are not what they should be are refused by their names."""

import torch

from llmpq.errors import InvalidInputError
from stage_server.checkpoint import Checkpoint


def read_floats(checkpoint: Checkpoint, name: str, *dimensions: int) -> torch.Tensor:
    """A tensor of floats of these dimensions.

    Raises:
        NotFoundError: It is missing.
        InvalidInputError: It has another type or shape, or holds NaN or infinity.
    """
    tensor = checkpoint.tensor(name)
    if tensor.shape != dimensions or not tensor.is_floating_point():
        found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise wrong_tensor(name, f"is {found}, but the configuration says floats of shape {dimensions}")
    if not tensor.isfinite().all():
        raise wrong_tensor(name, "holds NaN or infinity: the checkpoint is damaged")
    return tensor


def wrong_tensor(name: str, problem: str) -> InvalidInputError:
    """The error for a tensor with a problem."""
    return InvalidInputError(f"Tensor '{name}' {problem}.", reason="BAD_TENSOR", subject=name)
