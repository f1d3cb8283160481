"""Weights expanded to 16 bits in memory, each rounded once, for a library's product."""

import triton
import triton.language as tl

from quantizer.cuda.kernels.groups import codes_of_chunk

#: See `groups.minus_zero`: float16 holds every code exactly, whatever type is written.
MAGIC = tl.constexpr(0x64006400)


@triton.jit
def expand_groups(
    fragments,
    scales,
    zeros,
    weight,
    out_features,
    in_features,
    num_lanes,
    group_stride,
    bits: tl.constexpr,
    groups_per_span: tl.constexpr,
    block_n: tl.constexpr,
):
    """Writes the weight (N, K) that fragments stand for, on a grid of (blocks of N, spans).

    Args: as in `multiply_groups`.
    """
    words: tl.constexpr = 4 if bits == 4 else 2
    planes: tl.constexpr = 2 if bits == 4 else 3
    n = tl.program_id(0) * block_n + tl.arange(0, block_n)
    lanes = tl.program_id(0) * (2 * block_n) + tl.arange(0, 2 * block_n)
    lane_n = lanes // 32 * 16 + lanes % 32 // 4
    has_n = n < out_features
    has_lane = (lanes < num_lanes)[:, None]

    span = tl.program_id(1).to(tl.int64)
    plane_size = num_lanes * words
    plane = fragments + span * planes * plane_size + lanes[:, None] * words + tl.arange(0, words)[None, :]
    a = tl.load(plane, mask=has_lane, other=0)
    b = tl.load(plane + plane_size, mask=has_lane, other=0)
    c = b
    if bits == 3:
        c = tl.load(plane + 2 * plane_size, mask=has_lane, other=0)
    for chunk in tl.static_range(4):
        group = (span * groups_per_span + chunk * groups_per_span // 4) * group_stride
        scale = tl.load(scales + group + n, mask=has_n, other=0.0).to(tl.float32)[:, None]
        zero_0 = tl.load(zeros + group + lane_n, mask=lane_n < out_features, other=0)
        zero_1 = tl.load(zeros + group + lane_n + 8, mask=lane_n + 8 < out_features, other=0)
        zero_0 = (zero_0.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True)[:, None]
        zero_1 = (zero_1.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True)[:, None]
        codes = codes_of_chunk(a, b, c, zero_0, zero_1, MAGIC, chunk, bits, tl.float16)
        k = span * 128 + chunk * 32 + tl.arange(0, 32)
        tl.store(
            weight + n[:, None].to(tl.int64) * in_features + k[None, :],
            (codes.to(tl.float32) * scale).to(weight.dtype.element_ty),
            mask=has_n[:, None] & (k < in_features)[None, :],
        )


@triton.jit
def expand_int8(codes, scales, weight, in_features, code_stride, block: tl.constexpr):
    """Writes the weight (N, K) that codes stand for, an output channel a program.

    Args: as in `multiply_int8`.
    """
    n = tl.program_id(0).to(tl.int64)
    scale = tl.load(scales + n)
    for first in range(0, in_features, block):
        k = first + tl.arange(0, block)
        values = tl.load(codes + n * code_stride + k, mask=k < in_features, other=0).to(tl.float32) * scale
        tl.store(weight + n * in_features + k, values.to(weight.dtype.element_ty), mask=k < in_features)
