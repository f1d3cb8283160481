"""Activations times int8 weights with a scale per output channel: 16-bit floats, or int8 by integer tensor cores."""

import triton
import triton.language as tl

from quantizer.cuda.kernels.split_k import program_steps, sum_of_splits

#: The float 1.5 * 2**23 and its bits. A whole number below 2**22 added to the bits is added to the float: integers
#: become floats by a subtraction, where conversions run at a quarter of the speed.
FLOAT_OFFSET = tl.constexpr(12582912.0)
OFFSET_BITS = tl.constexpr(0x4B400000)


@triton.jit(do_not_specialize=["num_rows"])
def multiply_int8(
    x,
    x_scales,
    codes,
    scales,
    bias,
    y,
    partials,
    arrivals,
    num_rows,
    row_stride,
    out_features,
    in_features,
    code_stride,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    is_grouped: tl.constexpr,
    is_whole: tl.constexpr,
    is_split: tl.constexpr,
):
    """Computes y = x @ weight.T + bias on a grid of (blocks of M, blocks of N, splits of K).

    int8 activations are summed in int32, exactly, and others in float32; scales come last. But if each `block_k` (at
    most 256) input channels of a row have a scale of their own, their sums are scaled before they are added up.

    Args:
        x: (M, K) float16, bfloat16 or int8, `row_stride` apart.
        x_scales: float32 (K / block_k if `is_grouped` else 1, M) of int8 activations, or None.
        codes: int8 (N, K), `code_stride` apart.
        scales: float32 (N,).
        bias: (N,) or None.
        y: (M, N), contiguous.
        partials: As in `sum_of_splits`; not read unless `is_split`.
        arrivals: Likewise.
        is_whole: K is a multiple of `block_k`.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    sum_dtype: tl.constexpr = tl.int32 if dtype == tl.int8 and not is_grouped else tl.float32
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    k = tl.arange(0, block_k)
    has_row = m < num_rows
    has_n = n < out_features

    first, end = program_steps(tl.cdiv(in_features, block_k))
    weights = codes + n[:, None].to(tl.int64) * code_stride + first * block_k + k[None, :]
    inputs = x + m[None, :].to(tl.int64) * row_stride + first * block_k + k[:, None]
    if is_grouped:
        step_scales = x_scales + first.to(tl.int64) * num_rows + m
    sums = tl.zeros((block_n, block_m), sum_dtype)
    for step in range(first, end):
        has_weight = has_n[:, None]
        has_x = has_row[None, :]
        if not is_whole:
            has_k = step * block_k + k < in_features
            has_weight = has_weight & has_k[None, :]
            has_x = has_x & has_k[:, None]
        weight = tl.load(weights, mask=has_weight, other=0)
        activations = tl.load(inputs, mask=has_x, other=0)
        if is_grouped:
            products = tl.full((block_n, block_m), OFFSET_BITS, tl.int32)
            products = tl.dot(weight, activations, products, out_dtype=tl.int32).to(tl.float32, bitcast=True)
            sums += (products - FLOAT_OFFSET) * tl.load(step_scales, mask=has_row, other=0.0)[None, :]
            step_scales += num_rows
        else:
            sums = tl.dot(weight.to(dtype), activations, sums, out_dtype=sum_dtype)
        weights += block_k
        inputs += block_k

    is_last = True
    if is_split:
        sums, is_last = sum_of_splits(sums, partials, arrivals)
    results = sums.to(tl.float32) * tl.load(scales + n, mask=has_n, other=0.0)[:, None]
    if x_scales is not None and not is_grouped:
        results *= tl.load(x_scales + m, mask=has_row, other=0.0)[None, :]
    if bias is not None:
        results += tl.load(bias + n, mask=has_n, other=0.0).to(tl.float32)[:, None]
    tl.store(
        y + m[None, :].to(tl.int64) * out_features + n[:, None],
        results.to(y.dtype.element_ty),
        mask=has_n[:, None] & has_row[None, :] & is_last,
    )
