"""Activations times 4-bit or 3-bit weights with a scale per group, unpacked in registers (see `fragments`)."""

import triton
import triton.language as tl

from quantizer.cuda.kernels.split_k import program_steps, sum_of_splits


@triton.jit
def code(a, b, c, number: tl.constexpr, bits: tl.constexpr):
    """The codes of a number in both half words, in their lowest bits; a, b, c are the planes (c of 3 bits only)."""
    per_plane: tl.constexpr = 16 // bits
    if number == 15:
        word = (a >> 15 & 0x00010001) | (b >> 14 & 0x00020002) | (c >> 13 & 0x00040004)
    else:
        if number < per_plane:
            word = a
        elif number < 2 * per_plane:
            word = b
        else:
            word = c
        word = (word >> bits * (number % per_plane)) & ((1 << bits) - 1) * 0x00010001
    return word


@triton.jit
def minus_zero(word, zero, magic, dtype: tl.constexpr):
    """Both half words' codes minus their zero point, exact in a 16-bit float type.

    With the bits of `magic` put above it, a code is the float 1024 + code (float16) or 128 + code (bfloat16). The high
    half is subtracted first because the assembler then does both at once without swapping them.

    Returns:
        The halves, low one first, along a new last axis.
    """
    word |= magic
    high = (word >> 16).to(tl.int16).to(dtype, bitcast=True) - zero
    low = word.to(tl.int16).to(dtype, bitcast=True) - zero
    return tl.join(low, high)


@triton.jit
def codes_of_chunk(a, b, c, zero_0, zero_1, magic, chunk: tl.constexpr, bits: tl.constexpr, dtype: tl.constexpr):
    """Codes minus zero points of 32 input channels, (N, 32), from planes (2 * N, words)."""
    block_n: tl.constexpr = a.shape[0] // 2
    if bits == 4:
        first = minus_zero(code(a, b, c, 2 * chunk, 4), zero_0, magic, dtype)
        second = minus_zero(code(a, b, c, 2 * chunk + 1, 4), zero_1, magic, dtype)
        # tile, row, lane's columns, word, half word, row half
        codes = tl.reshape(tl.join(first, second), (block_n // 16, 8, 4, 4, 2, 2))
        codes = tl.permute(codes, (0, 5, 1, 2, 3, 4))
    else:
        first = tl.join(
            minus_zero(code(a, b, c, 4 * chunk, 3), zero_0, magic, dtype),
            minus_zero(code(a, b, c, 4 * chunk + 1, 3), zero_0, magic, dtype),
        )
        second = tl.join(
            minus_zero(code(a, b, c, 4 * chunk + 2, 3), zero_1, magic, dtype),
            minus_zero(code(a, b, c, 4 * chunk + 3, 3), zero_1, magic, dtype),
        )
        # tile, row, lane's columns, word, half word, low bit of the code's number, row half
        codes = tl.reshape(tl.join(first, second), (block_n // 16, 8, 4, 2, 2, 2, 2))
        codes = tl.permute(codes, (0, 6, 1, 2, 5, 3, 4))
    return tl.reshape(codes, (block_n, 32))


@triton.jit(do_not_specialize=["num_rows", "magic"])
def multiply_groups(
    x,
    fragments,
    scales,
    zeros,
    bias,
    y,
    partials,
    arrivals,
    num_rows,
    row_stride,
    out_features,
    in_features,
    num_spans,
    num_lanes,
    group_stride,
    magic,
    bits: tl.constexpr,
    groups_per_span: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    is_whole: tl.constexpr,
    is_split: tl.constexpr,
):
    """Computes y = x @ weight.T + bias on a grid of (blocks of M, blocks of N, splits of K).

    Sums each group's products of exact codes in float32 and scales the sum, so scales are not rounded to 16 bits.

    Args:
        x: (M, K) float16 or bfloat16, `row_stride` apart.
        fragments: int32 (num_spans, planes, num_lanes, words).
        scales: float16 (groups, N), groups `group_stride` apart (0 if there is one), filled up to whole spans.
        zeros: uint8, likewise.
        bias: (N,) or None.
        y: (M, N), contiguous.
        partials: As in `sum_of_splits`; not read unless `is_split`.
        arrivals: Likewise.
        magic: See `minus_zero`; in both halves.
        groups_per_span: Groups in 128 input channels, or 1.
        is_whole: K is a multiple of 128.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    words: tl.constexpr = 4 if bits == 4 else 2
    planes: tl.constexpr = 2 if bits == 4 else 3
    chunks_per_group: tl.constexpr = 4 // groups_per_span

    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    lanes = tl.program_id(1) * (2 * block_n) + tl.arange(0, 2 * block_n)
    # The first of the two output channels of a lane.
    lane_n = lanes // 32 * 16 + lanes % 32 // 4
    k = tl.arange(0, 32)
    has_row = m < num_rows
    has_n = n < out_features
    has_lane = (lanes < num_lanes)[:, None]

    first, end = program_steps(num_spans)
    plane_size = num_lanes * words
    group = first.to(tl.int64) * groups_per_span * group_stride
    plane = fragments + first.to(tl.int64) * planes * plane_size + lanes[:, None] * words + tl.arange(0, words)[None, :]
    inputs = x + m[None, :].to(tl.int64) * row_stride + first * 128 + k[:, None]
    scale = scales + group + n
    zero = zeros + group + lane_n

    sums = tl.zeros((block_n, block_m), tl.float32)
    for span in range(first, end):
        a = tl.load(plane, mask=has_lane, other=0)
        b = tl.load(plane + plane_size, mask=has_lane, other=0)
        c = b
        if bits == 3:
            c = tl.load(plane + 2 * plane_size, mask=has_lane, other=0)
        for index in tl.static_range(groups_per_span):
            offset = index * group_stride
            zero_0 = tl.load(zero + offset, mask=lane_n < out_features, other=0)
            zero_1 = tl.load(zero + offset + 8, mask=lane_n + 8 < out_features, other=0)
            zero_0 = (zero_0 | magic.to(tl.int16)).to(dtype, bitcast=True)[:, None]
            zero_1 = (zero_1 | magic.to(tl.int16)).to(dtype, bitcast=True)[:, None]
            products = tl.zeros((block_n, block_m), tl.float32)
            for part in tl.static_range(chunks_per_group):
                column = (index * chunks_per_group + part) * 32
                has_x = has_row[None, :]
                if not is_whole:
                    has_x = has_x & ((span * 128 + column + k) < in_features)[:, None]
                activations = tl.load(inputs + column, mask=has_x, other=0.0)
                codes = codes_of_chunk(a, b, c, zero_0, zero_1, magic, index * chunks_per_group + part, bits, dtype)
                products = tl.dot(codes, activations, products)
            sums += products * tl.load(scale + offset, mask=has_n, other=0.0).to(tl.float32)[:, None]
        plane += planes * plane_size
        inputs += 128
        scale += groups_per_span * group_stride
        zero += groups_per_span * group_stride

    is_last = True
    if is_split:
        sums, is_last = sum_of_splits(sums, partials, arrivals)
    if bias is not None:
        sums += tl.load(bias + n, mask=has_n, other=0.0).to(tl.float32)[:, None]
    tl.store(
        y + m[None, :].to(tl.int64) * out_features + n[:, None],
        sums.to(y.dtype.element_ty),
        mask=has_n[:, None] & has_row[None, :] & is_last,
    )
