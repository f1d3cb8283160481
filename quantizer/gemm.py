"""Floating-point matrix products with weights that are stored in fewer bits than they are computed in."""

from typing import Protocol

import torch
from torch.nn import functional

from quantizer.blocks import rows_per_block


class ExpandRows(Protocol):
    """Gives rows of a stored weight matrix in a float type."""

    def __call__(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Output rows `rows` of the weight, (rows, in), in `dtype`."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Computes x @ weight.T + bias.

    In fp32 on a CPU this is oneDNN's product rather than MKL's, which `torch.nn.functional.linear` uses: it is as fast
    or faster, and it honours ONEDNN_MAX_CPU_ISA on every CPU, by which a stage server can be held to an older
    instruction set. MKL's own variable for that is not heeded on all CPUs.

    Args:
        x: (rows, in).
        weight: (out, in), of the type and on the device of x.
        bias: (out,), likewise, or None.

    Returns:
        (rows, out).
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001 the operator has no public name
        return product
    return functional.linear(x, weight, bias)


def expanding_linear(x: torch.Tensor, out_features: int, expand: ExpandRows, bias: torch.Tensor | None) -> torch.Tensor:
    """Computes x @ weight.T + bias with a weight that is expanded to the type of x on the way.

    On a CPU a block of output rows is expanded at a time, small enough to be still in the cache when it is multiplied,
    so no full float copy ever exists. Elsewhere launches cost more than memory traffic saves: one block.

    Args:
        x: (rows, in).
        out_features: Rows of the weight.
        expand: Gives rows of the weight.
        bias: (out,), of the type of x, or None.

    Returns:
        (rows, out).
    """
    block_rows = rows_per_block(x.shape[1]) if x.device.type == "cpu" else out_features
    if block_rows >= out_features:
        return linear(x, expand(slice(0, out_features), x.dtype), bias)
    output = x.new_empty(x.shape[0], out_features)
    for first in range(0, out_features, block_rows):
        rows = slice(first, min(first + block_rows, out_features))
        output[:, rows] = linear(x, expand(rows, x.dtype), bias[rows] if bias is not None else None)
    return output
