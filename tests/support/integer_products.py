"""Products with rounded activations as the native kernels define them, in float64 and exact integers."""

import torch
from torch.nn import functional


def round_activations(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """The activations that are multiplied instead of x, float64: int8 per row and group, times the group's scale."""
    num_inputs = x.shape[1]
    padded = functional.pad(x, (0, -num_inputs % group_size))
    groups = padded.view(len(x), padded.shape[1] // group_size, group_size)
    largest = groups.abs().amax(dim=2, keepdim=True)
    inverse = torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0)
    rounded = (groups * inverse).round().double() * (largest / 127).double()
    return rounded.flatten(1)[:, :num_inputs]


def rotated(matrix: torch.Tensor) -> torch.Tensor:
    """Each 64 columns times the Hadamard matrix, in which +-1/8 at (i, j) has the sign of the parity of i & j."""
    numbers = torch.arange(64)
    parity = sum(((numbers[:, None] & numbers) >> bit) & 1 for bit in range(6)) % 2
    hadamard = (1 - 2 * parity).to(matrix.dtype) / 8
    return (matrix.view(-1, 64) @ hadamard).view(matrix.shape)


def integer_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, group_size: int) -> torch.Tensor:
    """round_activations(x) @ weight.T + bias, float64 (rows, out)."""
    product = round_activations(x, group_size) @ weight.double().T
    return product + bias.double() if bias is not None else product
