"""The layout of weights for the native kernels."""

import pytest
import torch

from quantizer.rounding import round_groups, round_rows
from quantizer.tiles import TiledWeight, pack_tiles, unpack_tiles

SHAPES = ((64, 128), (37, 91), (16, 32), (1, 1), (5, 200))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_unpacking_undoes_packing(bits: int, shape: tuple[int, int]) -> None:
    """Every code comes back, of matrices that do not fill their tiles too."""
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    assert torch.equal(unpack_tiles(pack_tiles(codes, bits), bits, codes.shape), codes)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_packing_is_dense(bits: int) -> None:
    """Codes of full tiles take no more than their bits."""
    assert pack_tiles(torch.zeros(32, 96, dtype=torch.uint8), bits).nbytes == 32 * 96 * bits // 8


@pytest.mark.parametrize("shape", SHAPES)
def test_the_weight_that_is_stood_for_is_kept(shape: tuple[int, int]) -> None:
    """A tiled weight stands for just what the rounded one does."""
    weight = torch.randn(shape)
    for rounded in (round_rows(weight), round_groups(weight, 4, 64), round_groups(weight, 3, 0)):
        assert torch.equal(TiledWeight.of(rounded).dequantized(), rounded.dequantized())
