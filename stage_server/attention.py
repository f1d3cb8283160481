"""Attention of new tokens over the cache, without padding rows."""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from stage_server.kv_cache import LayerCache
from stage_server.positions import Positions, first_seen

#: Rows whose capped scores exist at a time: PyTorch's fused attention cannot cap, so they are materialized.
_CAPPED_ROWS = 128


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
        outputs = [
            self._one_sequence(rows, cache, positions, sequence)
            for sequence, rows in enumerate(queries.split_with_sizes(layout.counts))
        ]
        return torch.cat(outputs)

    def _one_token_each(self, queries: torch.Tensor, cache: LayerCache, positions: Positions) -> torch.Tensor:
        """All sequences at once; the query heads that share a kv head stand where SDPA expects query positions."""
        layout = positions.layout
        keys, values = cache.gather(layout, first_seen(min(layout.ends) - 1, self.window))
        num_sequences, num_kv_heads = keys.shape[:2]
        grouped = queries.view(num_sequences, num_kv_heads, -1, queries.shape[-1])
        mask = positions.decode_mask(self.window)
        if self.soft_cap is None:
            attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=self.scale)
        else:
            attended = _capped(grouped, keys, values, mask, scale=self.scale, soft_cap=self.soft_cap)
        return attended.reshape(num_sequences, -1)

    def _one_sequence(
        self, queries: torch.Tensor, cache: LayerCache, positions: Positions, sequence: int
    ) -> torch.Tensor:
        num_rows, num_heads, head_dim = queries.shape
        num_kv_heads = cache.keys.shape[1]
        layout = positions.layout
        slot, seen = (
            layout.slots[sequence],
            slice(first_seen(layout.starts[sequence], self.window), layout.ends[sequence]),
        )
        keys, values = cache.keys[slot, :, seen], cache.values[slot, :, seen]
        grouped = queries.view(num_rows, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
        if self.soft_cap is None:
            sharing = num_heads // num_kv_heads
            keys, values = (heads[:, None].expand(-1, sharing, -1, -1) for heads in (keys, values))
            mask = positions.prefill_mask(sequence, self.window)
            attended = scaled_dot_product_attention(
                grouped, keys, values, attn_mask=mask, is_causal=mask is None, scale=self.scale
            )
        else:
            visible = positions.visible(sequence, self.window)
            attended = _capped_rows(grouped, keys, values, visible, scale=self.scale, soft_cap=self.soft_cap)
        return attended.permute(2, 0, 1, 3).reshape(num_rows, -1)


def _capped_rows(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor,
    *,
    scale: float,
    soft_cap: float,
) -> torch.Tensor:
    """`_capped` of one sequence, some rows at a time: scores of all of them would take more than the cache they read.

    Args:
        queries: (kv heads, sharing, rows, head_dim).
        keys: (kv heads, keys, head_dim).
        values: Like keys.
        visible: Bool (rows, keys).
        scale: See Attention.
        soft_cap: See Attention.

    Returns:
        Like queries.
    """
    sharing = queries.shape[1]
    attended = [
        _capped(rows.flatten(1, 2), keys, values, seen.repeat(sharing, 1), scale=scale, soft_cap=soft_cap).view(
            rows.shape
        )
        for rows, seen in zip(
            torch.split(queries, _CAPPED_ROWS, dim=2), torch.split(visible, _CAPPED_ROWS), strict=True
        )
    ]
    return torch.cat(attended, dim=2)


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
    scores = (queries @ keys.mT).mul_(scale / soft_cap).tanh_().mul_(soft_cap)
    if visible is not None:
        scores = scores.masked_fill_(~visible, -torch.inf)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype) @ values
