"""Attention by native kernels equals attention by torch, which equals brute force (test_attention)."""

import ctypes
import itertools
from dataclasses import dataclass

import pytest
import torch

from quantizer.native import build
from quantizer.native.decoder import AttentionKind, CachedHeads, DecoderKernels
from quantizer.native.library import Kernels, kernels, usable_instruction_sets
from stage_server.attention import Attention
from stage_server.families.spec import NormKind
from stage_server.kv_cache import FloatLayerCache, Int8LayerCache, LayerCache
from stage_server.layout import BatchLayout
from stage_server.norms import Norm
from stage_server.positions import Positions, Rotation, rotate

pytestmark = pytest.mark.skipif(kernels() is None, reason="the native library is not built on this host")

CPU = torch.device("cpu")
KV_HEADS, SLOTS, TOKENS = 2, 4, 330
EPS = 1e-6

#: Slots, starts, counts: prompts; later parts of prompts; decoding, ragged and scattered.
LAYOUTS = (((0, 1, 2), (0, 0, 0), (300, 1, 40)), ((3, 1), (7, 200), (60, 2)), ((3, 0, 2), (299, 3, 63), (1, 1, 1)))
#: Window, soft cap, linear biases, norms of heads.
KINDS = ((None, None, False, False), (5, None, False, False), (150, 1.5, False, True), (70, None, True, False))


@dataclass(frozen=True)
class Case:
    """What is attended to, and how."""

    kind: AttentionKind
    head_dim: int
    rotated: int

    def projected(self, num_rows: int) -> torch.Tensor:
        """Random queries, keys and values."""
        return torch.randn(num_rows, (self.kind.num_heads + 2 * KV_HEADS) * self.head_dim)

    def rotation(self, positions: torch.Tensor) -> Rotation | None:
        """Random angles that depend on the position."""
        if not self.rotated:
            return None
        angles = positions[:, None].float() * torch.linspace(1, 0.01, self.rotated // 2)
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos(), angles.sin()


def _case(kind: tuple[int | None, float | None, bool, bool], head_dim: int, sharing: int, rotated: int) -> Case:
    window, soft_cap, has_slopes, has_norms = kind
    num_heads = KV_HEADS * sharing
    return Case(
        AttentionKind(
            num_heads=num_heads,
            scale=head_dim**-0.5,
            window=window,
            soft_cap=soft_cap,
            slopes=torch.rand(num_heads) if has_slopes else None,
            head_norms=(torch.randn(head_dim), None) if has_norms else None,
            eps=EPS,
        ),
        head_dim,
        rotated,
    )


def _cache(head_dim: int, *, is_int8: bool) -> LayerCache:
    """One with random numbers in it."""
    shape = (2, SLOTS, KV_HEADS, TOKENS)
    if is_int8:
        codes = torch.randint(-127, 128, (*shape, head_dim), dtype=torch.int8)
        return Int8LayerCache(codes, torch.rand(shape) / 60, torch.float32)
    return FloatLayerCache(*torch.randn(*shape, head_dim))


def _as_the_kernels_have_it(heads: CachedHeads) -> CachedHeads:
    """A copy in the order of the kernels."""
    scales = (part.clone() if part is not None else None for part in (heads.key_scales, heads.value_scales))
    return CachedHeads(_in_tiles(heads.keys), heads.values.clone(), *scales)


def _in_tiles(keys: torch.Tensor) -> torch.Tensor:
    """Keys in the order in which the kernels cache them."""
    tiles = [tile.mT.reshape(*tile.shape[:2], -1) for tile in keys.split(16, dim=2)]
    return torch.cat(tiles, dim=-1).view(keys.shape)


def _by_torch(case: Case, projected: torch.Tensor, cache: LayerCache, layout: BatchLayout) -> torch.Tensor:
    kind = case.kind
    heads = projected.view(len(projected), -1, case.head_dim)
    queries, keys, values = heads.split_with_sizes((kind.num_heads, KV_HEADS, KV_HEADS), dim=1)
    if kind.head_norms is not None:
        queries, keys = (
            Norm(NormKind.RMS, weight, None, EPS)(part)
            for weight, part in zip(kind.head_norms, (queries, keys), strict=True)
        )
    rotation = case.rotation(layout.positions)
    if rotation is not None:
        queries, keys = rotate(queries, rotation), rotate(keys, rotation)
    cache.write(layout, keys, values)
    slopes = kind.slopes.view(KV_HEADS, -1) if kind.slopes is not None else None
    positions = Positions(layout, (), slopes, torch.float32)
    return Attention(kind.scale, kind.window, kind.soft_cap)(queries.contiguous(), cache, positions)


def _natively(
    native: DecoderKernels, case: Case, projected: torch.Tensor, cache: CachedHeads, layout: BatchLayout
) -> torch.Tensor:
    rotation = case.rotation(layout.positions)
    return native.attend(projected.clone(), cache, layout.table, rotation, case.kind)


@pytest.mark.parametrize("is_int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("instruction_set", build.INSTRUCTION_SETS)
@pytest.mark.parametrize(("head_dim", "sharing", "rotated"), [(64, 3, 64), (8, 1, 8), (80, 9, 20), (18, 4, 0)])
def test_attention_equals_torch(
    *, instruction_set: str, head_dim: int, sharing: int, rotated: int, is_int8: bool
) -> None:
    """Prefill, chunks and ragged decoding; windows, caps, biases, norms; head sizes that do and do not fill vectors."""
    if instruction_set not in usable_instruction_sets():
        pytest.skip(f"this CPU, or this process, has no {instruction_set}")
    native = DecoderKernels(Kernels(ctypes.CDLL(str(build.library_path())), instruction_set))
    torch.manual_seed(3)
    for kind, sequences in itertools.product(KINDS, LAYOUTS):
        case, layout = _case(kind, head_dim, sharing, rotated), BatchLayout(*sequences, CPU)
        cache = _cache(head_dim, is_int8=is_int8)
        by_torch, by_kernels = cache.heads, _as_the_kernels_have_it(cache.heads)
        projected = case.projected(layout.num_rows)
        expected = _by_torch(case, projected, cache, layout)
        actual = _natively(native, case, projected, by_kernels, layout)
        # Where sums differ in their last bits, a code may be rounded to its neighbour.
        precision = {"atol": 3e-2, "rtol": 1e-2} if is_int8 else {"atol": 2e-5, "rtol": 1e-4}
        torch.testing.assert_close(actual, expected, **precision)
        one_code = {"atol": 1, "rtol": 0} if is_int8 else {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(by_kernels.keys, _in_tiles(by_torch.keys), **one_code)
        torch.testing.assert_close(by_kernels.values, by_torch.values, **one_code)
        for ours, theirs in (
            (by_kernels.key_scales, by_torch.key_scales),
            (by_kernels.value_scales, by_torch.value_scales),
        ):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("is_int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_company(
    *, kind: tuple[int | None, float | None, bool, bool], is_int8: bool
) -> None:
    """Bit by bit the same: a prompt at once, in chunks beside others, and token by token; on one thread and on two."""
    native = kernels()
    assert native is not None
    decoder, case, num_tokens = DecoderKernels(native), _case(kind, 64, 3, 64), 150
    prompt, other = case.projected(num_tokens), case.projected(num_tokens)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads, chunk in ((1, num_tokens), (2, 67), (2, 1)):
            torch.set_num_threads(num_threads)
            cache, rows = _cache(64, is_int8=is_int8).heads, []
            for start in range(0, num_tokens, chunk):
                size = min(chunk, num_tokens - start)
                layout = BatchLayout((2, 1), (start, start), (size, size), CPU)
                together = torch.cat((other[start : start + size], prompt[start : start + size]))
                rows.append(_natively(decoder, case, together, cache, layout)[size:])
            results.append(torch.cat(rows))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
