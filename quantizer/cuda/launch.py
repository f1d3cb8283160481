"""How a product is cut into programs, decided from shapes and the chip alone."""

import functools
from dataclasses import dataclass

import torch

from quantizer.cuda.chip import Chip


@dataclass(frozen=True)
class Tiling:
    """How large the blocks of a path are.

    Attributes:
        max_rows: Rows of a block at most; fewer if there are fewer.
        min_rows: Rows of a block at least, so that few kernels are compiled.
        block_n: Output channels of a block.
        num_warps: Warps of a program.
        num_stages: Steps through the input channels that are in flight.
        programs_per_processor: As many programs are to run at once; input channels are split for that.
    """

    max_rows: int
    min_rows: int
    block_n: int
    num_warps: int
    num_stages: int
    programs_per_processor: int

    def max_split_programs(self, chip: Chip) -> int:
        """Programs of a launch that splits input channels, at most."""
        return self.programs_per_processor * chip.num_processors


#: Few rows: memory traffic decides. Two warps, so that Hopper too takes the instruction for 8 rows.
FEW_ROWS = Tiling(max_rows=16, min_rows=8, block_n=64, num_warps=2, num_stages=4, programs_per_processor=4)
#: Many rows, sums in two sets of registers: each group's, and those scaled already. With 128 rows Triton 3.7 makes a
#: kernel of nothing but a trap for 10.0.
MANY_ROWS = Tiling(max_rows=64, min_rows=32, block_n=128, num_warps=8, num_stages=3, programs_per_processor=1)
#: Many rows, sums scaled once at the end.
MANY_ROWS_INT8 = Tiling(max_rows=128, min_rows=32, block_n=128, num_warps=8, num_stages=3, programs_per_processor=1)
#: Chips without tensor cores: more rows do not fit into registers.
NO_TENSOR_CORES = Tiling(max_rows=8, min_rows=1, block_n=64, num_warps=4, num_stages=2, programs_per_processor=4)
#: All tilings.
TILINGS = (FEW_ROWS, MANY_ROWS, MANY_ROWS_INT8, NO_TENSOR_CORES)


@dataclass(frozen=True)
class Grid:
    """The programs of a launch.

    Attributes:
        block_m: Rows of a block.
        programs: Blocks of rows, blocks of output channels, splits of input channels. Rows run fastest, so that a
            weight is read by all rows while it is in the second-level cache.
    """

    block_m: int
    programs: tuple[int, int, int]

    @property
    def is_split(self) -> bool:
        """Whether several programs sum for one output tile."""
        return self.programs[2] > 1


def plan_grid(tiling: Tiling, chip: Chip, *, num_rows: int, out_features: int, num_steps: int) -> Grid:
    """Cuts a product into programs.

    Args:
        tiling: Of the path.
        chip: That it runs on.
        num_rows: At least 1.
        out_features: Output channels.
        num_steps: Steps that the input channels are taken in; a split takes at least two.
    """
    block_m = min(max(_next_power_of_2(num_rows), tiling.min_rows), tiling.max_rows)
    tiles = -(-num_rows // block_m), -(-out_features // tiling.block_n)
    wanted = tiling.max_split_programs(chip) // (tiles[0] * tiles[1])
    steps = -(-num_steps // max(1, min(wanted, num_steps // 2)))
    return Grid(block_m, (*tiles, -(-num_steps // steps)))


def _next_power_of_2(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


@dataclass(frozen=True)
class Workspace:
    """Where programs that share an output tile meet; all zero between launches as far as it must be.

    One for each device, so launches that use it follow each other in one stream.

    Attributes:
        partials: int32, the sums of each program.
        arrivals: int32, how many programs have arrived at a tile; zero.
    """

    partials: torch.Tensor
    arrivals: torch.Tensor


@functools.cache
def workspace(device: torch.device, chip: Chip) -> Workspace:
    """The workspace of a device, large enough for every grid that is split (8.25 MiB with 132 processors)."""
    cells = max(tiling.max_split_programs(chip) * tiling.max_rows * tiling.block_n for tiling in TILINGS)
    tiles = max(tiling.max_split_programs(chip) for tiling in TILINGS)
    return Workspace(
        partials=torch.empty(cells, dtype=torch.int32, device=device),
        arrivals=torch.zeros(tiles, dtype=torch.int32, device=device),
    )
