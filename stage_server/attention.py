"""Attention of new tokens over the cache, without padding rows."""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from stage_server.kv_cache import LayerCache
from stage_server.positions import Positions, first_seen

#: Rows of a sequence that attend at a time where scores or biases of all of them would have to exist at once: PyTorch's
#: fused attention can neither cap scores nor make up biases on the way. Their temporaries are then less than what
#: `llmpq.memory.workspace_bytes` reckons with for whole prompts.
_SCORED_ROWS = 128


@dataclass(frozen=True)
class Attention:
    """How the queries of one layer attend.

    Attributes:
        scale: Factor on the products of queries and keys.
        window: How many tokens a query sees, its own the last of them; None is all.
        soft_cap: c of `c tanh(score / c)`; None without.
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None

    def __call__(self, queries: torch.Tensor, cache: LayerCache, positions: Positions) -> torch.Tensor:
        """Causal attention of the new tokens over what is cached of their own sequences, new tokens included.

        Args:
            queries: (rows, heads, head_dim); heads is a multiple of the cache's kv heads.
            cache: Holds the new tokens already.
            positions: Of the rows.

        Returns:
            (rows, heads * head_dim).
        """
        layout = positions.layout
        if layout.is_one_token_each:
            return self._one_token_each(queries, cache, positions)
        has_scores = self.soft_cap is not None or positions.has_biases
        max_rows = _SCORED_ROWS if has_scores else layout.num_rows
        outputs = []
        for slot, start, rows in zip(layout.slots, layout.starts, queries.split_with_sizes(layout.counts), strict=True):
            for first in range(0, len(rows), max_rows):
                chunk = rows[first : first + max_rows]
                outputs.append(self._chunk(chunk, cache, positions, slot, start + first))
        return torch.cat(outputs)

    def _one_token_each(self, queries: torch.Tensor, cache: LayerCache, positions: Positions) -> torch.Tensor:
        """All sequences at once; the query heads that share a kv head stand where SDPA expects query positions."""
        layout = positions.layout
        slots = layout.slot_index if layout.contiguous_slots is None else layout.contiguous_slots
        keys, values = cache.read(slots, slice(first_seen(min(layout.ends) - 1, self.window), max(layout.ends)))
        num_sequences, num_kv_heads = keys.shape[:2]
        grouped = queries.view(num_sequences, num_kv_heads, -1, queries.shape[-1])
        mask = positions.decode_mask(self.window)
        if self.soft_cap is None:
            attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=self.scale)
        else:
            attended = _capped(grouped, keys, values, mask, scale=self.scale, soft_cap=self.soft_cap)
        return attended.reshape(num_sequences, -1)

    def _chunk(
        self, queries: torch.Tensor, cache: LayerCache, positions: Positions, slot: int, start: int
    ) -> torch.Tensor:
        """Consecutive rows (rows, heads, head_dim) of one sequence, the first of them at position `start`."""
        num_rows, num_heads, head_dim = queries.shape
        end = start + num_rows
        seen = slice(first_seen(start, self.window), end)
        keys, values = (cached[0] for cached in cache.read(slice(slot, slot + 1), seen))
        num_kv_heads = len(keys)
        sharing = num_heads // num_kv_heads
        grouped = queries.view(num_rows, num_kv_heads, sharing, head_dim).permute(1, 2, 0, 3)
        if self.soft_cap is None:
            keys, values = (heads[:, None].expand(-1, sharing, -1, -1) for heads in (keys, values))
            mask = positions.prefill_mask(start, end, self.window)
            attended = scaled_dot_product_attention(
                grouped, keys, values, attn_mask=mask, is_causal=mask is None, scale=self.scale
            )
        else:
            visible = positions.visible(start, end, self.window).repeat(sharing, 1)
            flat = _capped(grouped.flatten(1, 2), keys, values, visible, scale=self.scale, soft_cap=self.soft_cap)
            attended = flat.view(grouped.shape)
        return attended.permute(2, 0, 1, 3).reshape(num_rows, -1)


def _capped(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor | None,
    *,
    scale: float,
    soft_cap: float,
) -> torch.Tensor:
    """Attention whose scores are capped before they are masked (Gemma 2, arXiv 2408.00118, section 2).

    Args:
        queries: (..., queries, head_dim).
        keys: (..., keys, head_dim).
        values: Like keys.
        visible: Bool, broadcasts to (..., queries, keys); None is everything.
        scale: Factor on the products of queries and keys.
        soft_cap: See Attention.

    Returns:
        (..., queries, head_dim).
    """
    scores = (queries @ keys.mT).mul_(scale / soft_cap).tanh_() * soft_cap  # gradients need what tanh gave
    if visible is not None:
        scores = scores.masked_fill_(~visible, -torch.inf)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype) @ values
