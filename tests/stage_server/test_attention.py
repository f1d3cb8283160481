"""Attention over the cache equals the sum over each query's keys, written out."""

import itertools

import pytest
import torch

from stage_server.attention import Attention
from stage_server.kv_cache import FloatLayerCache
from stage_server.layout import BatchLayout
from stage_server.positions import Positions

CPU = torch.device("cpu")
KV_HEADS, SHARING, HEAD_DIM, SLOTS, TOKENS = 2, 3, 8, 4, 320
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625])

#: Window, soft cap, linear biases; no family has both of the last two.
KINDS = tuple(kind for kind in itertools.product((None, 5, 150), (None, 1.5), (False, True)) if not all(kind[1:]))


def brute_force(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, attention: Attention, slopes: torch.Tensor | None
) -> torch.Tensor:
    """One query (heads, head_dim), the last of its sequence, in float64, one head after another.

    Args:
        query: (heads, head_dim).
        keys: (kv heads, tokens, head_dim), the query's own the last.
        values: Like keys.
        attention: How to attend.
        slopes: (heads,), or None.

    Returns:
        (heads, head_dim).
    """
    position = keys.shape[1] - 1
    first = 0 if attention.window is None else max(0, position + 1 - attention.window)
    keys, values = keys[:, first:].double(), values[:, first:].double()
    heads = []
    for head in range(KV_HEADS * SHARING):
        scores = keys[head // SHARING] @ query[head].double() * attention.scale
        if attention.soft_cap is not None:
            scores = attention.soft_cap * torch.tanh(scores / attention.soft_cap)
        if slopes is not None:
            scores = scores + slopes[head].double() * (torch.arange(first, position + 1) - position)
        heads.append(scores.softmax(0) @ values[head // SHARING])
    return torch.stack(heads).float()


@pytest.mark.parametrize(
    ("slots", "starts", "counts"),
    [
        ((0, 1, 2), (0, 0, 0), (300, 1, 40)),  # prompts
        ((3, 1), (7, 200), (60, 2)),  # later parts of prompts
        ((0, 1, 2, 3), (299, 3, 150, 0), (1, 1, 1, 1)),  # decode, ragged
        ((3, 0), (290, 288), (1, 1)),  # decode, scattered slots
        ((1, 2), (160, 160), (1, 1)),  # decode, all of one length
    ],
    ids=("prefill", "chunks", "decode", "scattered", "even"),
)
@pytest.mark.parametrize(("window", "soft_cap", "has_slopes"), KINDS)
def test_attention_equals_brute_force(
    *,
    slots: tuple[int, ...],
    starts: tuple[int, ...],
    counts: tuple[int, ...],
    window: int | None,
    soft_cap: float | None,
    has_slopes: bool,
) -> None:
    """With and without windows, caps and linear biases; grouped heads; more rows than are capped at a time."""
    generator = torch.Generator().manual_seed(5)
    shape = (SLOTS, KV_HEADS, TOKENS, HEAD_DIM)
    cache = FloatLayerCache(*(torch.randn(shape, generator=generator) for _ in range(2)))
    layout = BatchLayout(slots, starts, counts, CPU)
    queries = torch.randn(layout.num_rows, KV_HEADS * SHARING, HEAD_DIM, generator=generator)
    attention = Attention(0.4, window, soft_cap)
    slopes = SLOPES if has_slopes else None
    positions = Positions(layout, (), slopes.view(KV_HEADS, SHARING) if slopes is not None else None, torch.float32)

    attended = attention(queries, cache, positions).view(queries.shape)

    rows = [(slot, start + new) for slot, start, n in zip(slots, starts, counts, strict=True) for new in range(n)]
    checked = [row for row in range(len(rows)) if row % 7 == 0 or row > len(rows) - 5]
    for row in checked:
        slot, position = rows[row]
        keys, values = (cached[0] for cached in cache.read(slice(slot, slot + 1), slice(position + 1)))
        expected = brute_force(queries[row], keys, values, attention, slopes)
        torch.testing.assert_close(attended[row], expected, atol=2e-5, rtol=1e-4)
