"""Rotary positions, and attention of new tokens over the cache without padding rows."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from stage_server.kv_cache import LayerCache
from stage_server.layout import BatchLayout


class Rotary:
    """Rotates queries and keys by their positions, in Hugging Face's layout of halves.

    Args:
        frequencies: (head_dim / 2,) angle per position.
        scale: Factor on the result.
    """

    def __init__(self, frequencies: torch.Tensor, scale: float) -> None:
        self._frequencies = frequencies
        self._scale = scale

    def table(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of (rows,) positions, each (rows, 1, head_dim) float32; one table serves every layer."""
        angles = positions[:, None].float() * self._frequencies[None, :]
        angles = torch.cat((angles, angles), dim=-1)[:, None, :]
        return angles.cos() * self._scale, angles.sin() * self._scale

    @staticmethod
    def rotate(heads: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Rotates (rows, heads, head_dim)."""
        cosines, sines = table
        first, second = heads.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return heads * cosines.to(heads.dtype) + turned * sines.to(heads.dtype)


def attend(queries: torch.Tensor, cache: LayerCache, layout: BatchLayout) -> torch.Tensor:
    """Causal attention of the new tokens over everything cached of their own sequences, new tokens included.

    Args:
        queries: (rows, heads, head_dim); heads is a multiple of the cache's kv heads.
        cache: Holds the new tokens already.
        layout: Which rows belong to which sequence.

    Returns:
        (rows, heads * head_dim).
    """
    if layout.is_one_token_each:
        return _attend_one_token_each(queries, cache, layout)
    outputs = []
    for slot, start, rows in zip(layout.slots, layout.starts, queries.split_with_sizes(layout.counts), strict=True):
        outputs.append(_attend_one_sequence(rows, cache, slot, start))
    return torch.cat(outputs)


def _attend_one_token_each(queries: torch.Tensor, cache: LayerCache, layout: BatchLayout) -> torch.Tensor:
    """All sequences at once; the query heads that share a kv head stand where SDPA expects query positions."""
    keys, values = cache.gather(layout)
    num_sequences, num_kv_heads = keys.shape[:2]
    grouped = queries.view(num_sequences, num_kv_heads, -1, queries.shape[-1])
    mask = layout.is_cached if len(set(layout.ends)) > 1 else None
    return scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(num_sequences, -1)


def _attend_one_sequence(queries: torch.Tensor, cache: LayerCache, slot: int, start: int) -> torch.Tensor:
    num_rows, num_heads, head_dim = queries.shape
    end = start + num_rows
    num_kv_heads = cache.keys.shape[1]
    sharing = num_heads // num_kv_heads
    keys, values = (cached[slot, :, None, :end].expand(-1, sharing, -1, -1) for cached in (cache.keys, cache.values))
    grouped = queries.view(num_rows, num_kv_heads, sharing, head_dim).permute(1, 2, 0, 3)
    mask = None
    if start:
        mask = torch.ones(num_rows, end, dtype=torch.bool, device=queries.device).tril(start)
    attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, is_causal=not start)
    return attended.permute(2, 0, 1, 3).reshape(num_rows, -1)
