"""The two ends of an int8 product: activations rounded per token, and sums scaled back."""

import triton
import triton.language as tl

#: Adding and subtracting 1.5 * 2**23 rounds a float32 below 2**22 to the nearest whole number, halves to even.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def magnitude_bits(values):
    """Bits of the magnitudes of float32 values: they are ordered as these are, with NaN above all, so none is lost."""
    return tl.abs(values).to(tl.int32, bitcast=True)


@triton.jit
def scale_of(largest_bits):
    """The scale with which a largest magnitude, given by its bits, becomes 127; at least the smallest normal number."""
    scale = tl.div_rn(largest_bits.to(tl.float32, bitcast=True), 127.0)
    return tl.maximum(scale.to(tl.int32, bitcast=True), 0x00800000).to(tl.float32, bitcast=True)


@triton.jit
def rounded(values, scales):
    """int8 codes of values."""
    return (tl.div_rn(values, scales) + ROUNDER - ROUNDER).to(tl.int8)


@triton.jit
def round_tokens(x, codes, scales, row_stride, num_columns, code_stride, block: tl.constexpr):
    """Rounds each row of x to int8, its largest magnitude becoming 127; a row a program.

    Args:
        x: (M, K) float, `row_stride` apart.
        codes: int8 (M, code_stride), written whole: what is over is 0.
        scales: float32 (M,).
        num_columns: K.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inputs = x + row * row_stride + columns
    largest_bits = tl.zeros((block,), tl.int32)
    for first in range(0, num_columns, block):
        values = tl.load(inputs + first, mask=first + columns < num_columns, other=0.0)
        largest_bits = tl.maximum(largest_bits, magnitude_bits(values.to(tl.float32)))
    scale = scale_of(tl.max(largest_bits, 0))
    tl.store(scales + row, scale)
    for first in range(0, code_stride, block):
        values = tl.load(inputs + first, mask=first + columns < num_columns, other=0.0).to(tl.float32)
        tl.store(
            codes + row * code_stride + first + columns, rounded(values, scale), mask=first + columns < code_stride
        )


@triton.jit
def round_token_groups(
    x,
    codes,
    scales,
    row_stride,
    num_columns,
    code_stride,
    num_groups,
    group_size: tl.constexpr,
    block_groups: tl.constexpr,
):
    """As `round_tokens`, each group of columns by itself, on a grid of (M, blocks of groups).

    Args:
        scales: float32 (num_groups, M).
    """
    row = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * block_groups + tl.arange(0, block_groups)
    columns = groups[:, None] * group_size + tl.arange(0, group_size)[None, :]
    values = tl.load(x + row * row_stride + columns, mask=columns < num_columns, other=0.0).to(tl.float32)
    scale = scale_of(tl.max(magnitude_bits(values), 1))
    tl.store(scales + groups.to(tl.int64) * tl.num_programs(0) + row, scale, mask=groups < num_groups)
    tl.store(codes + row * code_stride + columns, rounded(values, scale[:, None]), mask=columns < code_stride)


@triton.jit
def scale_sums(sums, x_scales, scales, bias, y, out_features, sum_stride, block: tl.constexpr):
    """Computes y = sums * x_scales * scales + bias, a row of M and a block of N a program.

    Args:
        sums: int32 (M, sum_stride).
        x_scales: float32 (M,).
        scales: float32 (N,).
        bias: (N,) or None.
        y: (M, N), contiguous.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * block + tl.arange(0, block)
    has_n = n < out_features
    results = tl.load(sums + row * sum_stride + n, mask=has_n, other=0).to(tl.float32)
    results = results * tl.load(scales + n, mask=has_n, other=0.0) * tl.load(x_scales + row)
    if bias is not None:
        results += tl.load(bias + n, mask=has_n, other=0.0).to(tl.float32)
    tl.store(y + row * out_features + n, results.to(y.dtype.element_ty), mask=has_n)
