"""Rounding to the nearest value."""

import pytest
import torch

from quantizer import rounding
from quantizer.rounded import GroupRounded, split_groups
from quantizer.rounding import round_groups, round_rows

ALL_GROUP_SIZES = (0, 32, 64, 128)


def _spread(groups: torch.Tensor, rounded: GroupRounded) -> torch.Tensor:
    """(rows, groups) metadata as (rows, columns), an entry for each weight."""
    size = rounded.group_size or rounded.codes.shape[1]
    return groups.float().repeat_interleave(size, dim=1)[:, : rounded.codes.shape[1]]


def test_int8_error_is_at_most_half_a_step() -> None:
    """No entry of a row rounded to int8 is off by more than half of the row's step."""
    matrix = torch.randn(33, 100) * torch.logspace(-6, 3, 33)[:, None]
    rounded = round_rows(matrix)
    error = (rounded.codes * rounded.scales[:, None] - matrix).abs()
    assert (error <= rounded.scales[:, None] * 0.5001).all()
    assert torch.equal(rounded.codes.abs().amax(dim=1), torch.full((33,), 127, dtype=torch.int8))


@pytest.mark.parametrize("row", [torch.zeros(8), torch.full((8,), 1e-42)])
def test_int8_of_vanishing_rows(row: torch.Tensor) -> None:
    """Rows of zeros, or too small to divide by, give finite scales and values next to nothing."""
    rounded = round_rows(row[None])
    assert rounded.scales.isfinite().all()
    assert (rounded.codes * rounded.scales[:, None] - row).abs().max() < 1e-38


def test_int8_keeps_nan_and_infinity_visible() -> None:
    """A token with NaN or infinity cannot come out of int8 as ordinary numbers, nor touch its neighbours."""
    rounded = round_rows(torch.tensor([[1.0, float("nan")], [1.0, float("inf")], [1.0, 2.0]]))
    assert rounded.scales.isfinite().tolist() == [False, False, True]


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("group_size", ALL_GROUP_SIZES)
@pytest.mark.parametrize("columns", [20, 128, 333])
def test_group_error_is_at_most_half_a_step_inside_the_range(bits: int, group_size: int, columns: int) -> None:
    """Inside its group's clipping range no weight is off by more than half a step; outside it is the nearer end."""
    weight = torch.randn(40, columns) * torch.logspace(-3, 2, 40)[:, None]
    rounded = round_groups(weight, bits, group_size)
    scale, zero = _spread(rounded.scales, rounded), _spread(rounded.zeros, rounded)
    low, high = -zero * scale, (2**bits - 1 - zero) * scale
    error = (rounded.dequantized() - weight.clamp(low, high)).abs()
    assert (error <= scale * 0.501).all()
    assert ((weight >= low) & (weight <= high)).float().mean() > 0.8


@pytest.mark.parametrize("bits", [4, 3])
def test_clipping_never_hurts(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clipping search lowers the squared error of normal weights, and raises that of no group."""
    weight = torch.randn(64, 512)
    clipped = (round_groups(weight, bits, 64).dequantized() - weight).square()
    monkeypatch.setattr(rounding, "CLIPPING_FACTORS", (1.0,))
    unclipped = (round_groups(weight, bits, 64).dequantized() - weight).square()
    assert clipped.sum() < 0.97 * unclipped.sum()
    assert (clipped.unflatten(1, (-1, 64)).sum(2) <= unclipped.unflatten(1, (-1, 64)).sum(2) * 1.00001).all()


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 1e-5])
def test_constant_groups_are_exact(value: float) -> None:
    """A group of equal weights is stored as exactly as a float16 scale can be."""
    weight = torch.full((2, 70), value)
    assert torch.allclose(round_groups(weight, 4, 32).dequantized(), weight, rtol=2e-3, atol=2**-20)


def test_on_grid_weights_are_exact() -> None:
    """Weights that lie on a grid of the group's own bits come back as they were."""
    codes = torch.randint(0, 16, (16, 128)).float()
    codes[:, ::32], codes[:, 1::32] = 0, 15
    weight = (codes - 7) / 32
    assert torch.allclose(round_groups(weight, 4, 32).dequantized(), weight, rtol=1e-3, atol=1e-6)


def test_groups_cover_all_columns_in_order() -> None:
    """Views of the groups hold every column once, in order, and write through; a last group may be shorter."""
    matrix = torch.arange(2 * 70).reshape(2, 70)
    views = split_groups(matrix, 32)
    assert [view.shape for view in views] == [(2, 2, 32), (2, 1, 6)]
    assert torch.equal(torch.cat([view.flatten(1) for view in views], dim=1), matrix)
    views[1].zero_()
    assert (matrix[:, 64:] == 0).all()


def test_rounding_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Working block by block gives what one piece gives."""
    weight = torch.randn(50, 96)
    whole = round_groups(weight, 3, 64)
    monkeypatch.setattr("quantizer.blocks.BLOCK_ELEMENTS", 96 * 7)
    in_blocks = round_groups(weight, 3, 64)
    assert torch.equal(whole.codes, in_blocks.codes)
    assert torch.equal(whole.scales, in_blocks.scales)
    assert torch.equal(whole.zeros, in_blocks.zeros)
