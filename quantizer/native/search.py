"""Finds the largest of many products without making them all exactly, by a native kernel (`search.cpp`)."""

import ctypes

import torch

from quantizer.native.library import WEIGHT_TYPES, Kernels, Team, address
from quantizer.tiles import TiledWeight

_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64


class _LargestProduct(ctypes.Structure):
    """Mirror of the struct in search.h; see there for each field."""

    _fields_ = (
        *((name, _POINTER) for name in ("x", "approximate", "weight", "errors", "norms", "found")),
        *((name, _INTEGER) for name in ("num_rows", "num_inputs", "num_outputs", "group_size", "type")),
        ("team", Team),
    )


def find_largest(
    kernels: Kernels,
    x: torch.Tensor,
    weight: torch.Tensor,
    rounded: TiledWeight,
    *,
    errors: torch.Tensor,
    norms: torch.Tensor,
) -> torch.Tensor:
    """For each row of x the output whose product with the weight is the largest, the first among equals.

    Args:
        kernels: Of this process.
        x: float32 (rows, in).
        weight: float16 or bfloat16 (out, in), contiguous.
        rounded: The weight in 8 bits.
        errors: float32 (out,): Euclidean norms of what rounding changed each output's weights by.
        norms: float32 (out,): Euclidean norms of each output's rounded weights.

    Returns:
        int64 (rows,); 0 for a row with NaN.
    """
    x = x.contiguous()
    approximate = kernels.multiply_codes(x, rounded, None, unpacks_first=False)
    found = torch.empty(len(x), dtype=torch.int64)
    call = _LargestProduct(
        *map(address, (x, approximate, weight, errors, norms, found)),
        *(len(x), weight.shape[1], len(weight), rounded.activation_group_size, WEIGHT_TYPES[weight.dtype]),
        kernels.team(),
    )
    kernels.function("find_largest")(ctypes.byref(call))
    return found
