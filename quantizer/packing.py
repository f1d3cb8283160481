"""Dense storage of 4-bit and 3-bit values.

A row of n values is cut into equal, contiguous runs, one per value of a storage unit (two for 4 bits, eight for 3),
and unit j holds the j-th value of every run. Packing and unpacking are then whole-run bit operations on contiguous
memory, which any vector unit does well, instead of a shuffle of neighbours.
"""

import torch
from torch.nn import functional


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs unsigned values along the last axis: two 4-bit values in a byte, eight 3-bit values in three.

    Args:
        values: uint8 (rows, n), each below 2**bits.
        bits: 4 or 3.

    Returns:
        uint8 (rows, ceil(n / 2)) for 4 bits, (rows, 3 * ceil(n / 8)) for 3 bits; what is over is zero.
    """
    return {4: _pack_4, 3: _pack_3}[bits](values)


def unpack(packed: torch.Tensor, bits: int, num_values: int) -> torch.Tensor:
    """Undoes `pack`.

    Args:
        packed: uint8 (rows, bytes).
        bits: 4 or 3.
        num_values: Values in a row before packing.

    Returns:
        uint8 (rows, num_values).
    """
    return {4: _unpack_4, 3: _unpack_3}[bits](packed)[:, :num_values]


def _pack_4(values: torch.Tensor) -> torch.Tensor:
    low, high = _runs(values, 2)
    return low | high << 4


def _unpack_4(packed: torch.Tensor) -> torch.Tensor:
    return torch.cat((packed & 15, packed >> 4), dim=1)


def _pack_3(values: torch.Tensor) -> torch.Tensor:
    v0, v1, v2, v3, v4, v5, v6, v7 = _runs(values, 8)
    # Shifts drop what leaves the byte: v2 and v5 straddle two.
    b0 = v0 | v1 << 3 | v2 << 6
    b1 = v2 >> 2 | v3 << 1 | v4 << 4 | v5 << 7
    b2 = v5 >> 1 | v6 << 2 | v7 << 5
    return torch.cat((b0, b1, b2), dim=1)


def _unpack_3(packed: torch.Tensor) -> torch.Tensor:
    b0, b1, b2 = packed.chunk(3, dim=1)
    runs = (
        b0 & 7,
        b0 >> 3 & 7,
        (b0 >> 6 | b1 << 2) & 7,
        b1 >> 1 & 7,
        b1 >> 4 & 7,
        (b1 >> 7 | b2 << 1) & 7,
        b2 >> 2 & 7,
        b2 >> 5,
    )
    return torch.cat(runs, dim=1)


def _runs(values: torch.Tensor, num_runs: int) -> tuple[torch.Tensor, ...]:
    """Cuts (rows, n) into equal contiguous runs (rows, ceil(n / num_runs)), the last ones filled up with zeros."""
    return functional.pad(values, (0, -values.shape[1] % num_runs)).chunk(num_runs, dim=1)
