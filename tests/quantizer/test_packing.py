"""Packing of 4-bit and 3-bit values."""

import pytest
import torch

from llmpq.schemes import SCHEMES
from quantizer.packing import pack, unpack

SIZES = (1, 2, 3, 7, 8, 9, 16, 63, 64, 65, 576)


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("num_values", SIZES)
def test_round_trip(bits: int, num_values: int) -> None:
    """What is packed comes back, for any row length."""
    values = torch.randint(0, 2**bits, (5, num_values), dtype=torch.uint8)
    assert torch.equal(unpack(pack(values, bits), bits, num_values), values)


@pytest.mark.parametrize("bits", [4, 3])
def test_every_value_has_its_own_bits(bits: int) -> None:
    """A single set value changes exactly its own bits: none overlap, none are wasted in a whole storage unit."""
    num_values = 16
    lone = torch.eye(num_values, dtype=torch.uint8) * (2**bits - 1)
    packed = pack(lone, bits)
    set_bits = sum((packed >> bit & 1).sum(dim=1) for bit in range(8))
    assert torch.equal(set_bits, torch.full((num_values,), bits))
    assert torch.equal(packed.sum(dim=0), torch.full((packed.shape[1],), 255))


@pytest.mark.parametrize(
    ("scheme", "num_values", "row_bytes"), [("w4", 9, 5), ("w4", 64, 32), ("w3", 9, 6), ("w3", 64, 24)]
)
def test_density(scheme: str, num_values: int, row_bytes: int) -> None:
    """Two 4-bit values take one byte, eight 3-bit values take three."""
    packed = pack(torch.zeros(3, num_values, dtype=torch.uint8), SCHEMES[scheme].weight_bits)
    assert packed.shape == (3, row_bytes)
    assert packed.dtype == torch.uint8
