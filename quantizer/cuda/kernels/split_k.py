"""Programs that share an output tile, each summing a part of the input channels: few rows keep all processors busy."""

import triton
import triton.language as tl


@triton.jit
def program_steps(num_steps):
    """First step and end of the steps that this program sums; programs along grid axis 2 share them."""
    steps = tl.cdiv(num_steps, tl.num_programs(2))
    first = tl.program_id(2) * steps
    return first, tl.minimum(first + steps, num_steps)


@triton.jit
def sum_of_splits(sums, partials, arrivals):
    """Adds up what the programs along grid axis 2 have summed; whoever arrives last at a tile has it all.

    Always in the same order, so that results do not depend on who was last. Arrival counters are left at zero.

    Args:
        sums: (rows, columns) int32 or float32 of this program.
        partials: int32, room for `sums` of every program of the grid.
        arrivals: int32, zero, one for each tile.

    Returns:
        The sums of all programs and True for the last program; for others their own sums and False.
    """
    num_splits = tl.num_programs(2)
    tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    num_columns: tl.constexpr = sums.shape[1]
    size: tl.constexpr = sums.shape[0] * sums.shape[1]
    cells = tl.arange(0, sums.shape[0])[:, None] * num_columns + tl.arange(0, num_columns)[None, :]
    first = partials + tile.to(tl.int64) * num_splits * size + cells
    # Past the first-level cache, which other processors do not see.
    tl.store(first + tl.program_id(2) * size, sums.to(tl.int32, bitcast=True), cache_modifier=".cg")
    # All threads have stored before one of them counts; its release and the last one's acquire make the rest visible.
    tl.debug_barrier()
    is_last = tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == num_splits - 1
    if is_last:
        sums = tl.zeros_like(sums)
        for split in range(num_splits):
            sums += tl.load(first + split * size, cache_modifier=".cg").to(sums.dtype, bitcast=True)
        tl.store(arrivals + tile, 0)
    return sums, is_last
