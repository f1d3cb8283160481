"""How products are cut into programs."""

import pytest
import torch

from quantizer.cuda.chip import Chip
from quantizer.cuda.launch import FEW_ROWS, MANY_ROWS, NO_TENSOR_CORES, TILINGS, Tiling, plan_grid, workspace

BIG, SMALL = Chip((9, 0), 132), Chip((7, 5), 40)


@pytest.mark.parametrize(
    ("tiling", "num_rows", "block_m"),
    [
        (FEW_ROWS, 1, 8),
        (FEW_ROWS, 8, 8),
        (FEW_ROWS, 9, 16),
        (FEW_ROWS, 500, 16),
        (MANY_ROWS, 1, 32),
        (MANY_ROWS, 33, 64),
        (MANY_ROWS, 4096, 64),
        (NO_TENSOR_CORES, 1, 1),
        (NO_TENSOR_CORES, 3, 4),
        (NO_TENSOR_CORES, 40, 8),
    ],
)
def test_blocks_have_as_many_rows_as_there_are(tiling: Tiling, num_rows: int, block_m: int) -> None:
    """A block is the next power of two within the tiling's limits."""
    assert plan_grid(tiling, BIG, num_rows=num_rows, out_features=64, num_steps=8).block_m == block_m


@pytest.mark.parametrize("chip", [BIG, SMALL])
@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("num_rows", [1, 16, 100, 2048])
@pytest.mark.parametrize(("out_features", "num_steps"), [(1, 1), (37, 3), (4096, 32), (11008, 32), (4096, 86)])
def test_grids_cover_the_product_and_split_only_as_far_as_it_helps(
    tiling: Tiling, chip: Chip, num_rows: int, out_features: int, num_steps: int
) -> None:
    """Every row, channel and step has a program; none is without a step; splits stop when the chip is full."""
    grid = plan_grid(tiling, chip, num_rows=num_rows, out_features=out_features, num_steps=num_steps)
    rows, columns, splits = grid.programs
    assert (rows - 1) * grid.block_m < num_rows <= rows * grid.block_m
    assert (columns - 1) * tiling.block_n < out_features <= columns * tiling.block_n
    steps = -(-num_steps // splits)
    assert (splits - 1) * steps < num_steps
    if grid.is_split:
        assert steps >= 2
        assert rows * columns * splits <= tiling.max_split_programs(chip)
    elif num_steps >= 4:
        assert 2 * rows * columns > tiling.max_split_programs(chip)


def test_few_rows_of_a_usual_layer_fill_a_large_chip() -> None:
    """A 4096 x 4096 layer is split, so that 132 processors all have something to read."""
    grid = plan_grid(FEW_ROWS, BIG, num_rows=1, out_features=4096, num_steps=32)
    assert grid.programs == (1, 64, 8)


@pytest.mark.parametrize("chip", [BIG, SMALL])
def test_the_workspace_holds_every_split_grid(chip: Chip) -> None:
    """Partial sums of any grid that is split fit, a counter a tile too, and counters begin at zero."""
    space = workspace(torch.device("cpu"), chip)
    for tiling in TILINGS:
        for num_rows in (1, 8, 16, 64, 128, 1000):
            for out_features in (16, 64, 4096, 11008):
                grid = plan_grid(tiling, chip, num_rows=num_rows, out_features=out_features, num_steps=1000)
                rows, columns, splits = grid.programs
                if grid.is_split:
                    assert rows * columns * splits * grid.block_m * tiling.block_n <= space.partials.numel()
                    assert rows * columns <= space.arrivals.numel()
    assert not space.arrivals.any()


def test_a_device_has_one_workspace() -> None:
    """All layers of a device share a workspace."""
    assert workspace(torch.device("cpu"), BIG) is workspace(torch.device("cpu"), BIG)
