"""Keys and values of the sequences in flight, in slots of fixed capacity."""

from typing import Protocol

import torch

from quantizer.native.decoder import CachedHeads
from stage_server.layout import BatchLayout


class LayerCache(Protocol):
    """Keys and values of one layer.

    Attributes:
        heads: Where they are; the order of the keys is the native kernels' own where these serve the layer.
    """

    heads: CachedHeads

    def write(self, layout: BatchLayout, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Stores the new tokens' keys and values, each (rows, kv heads, head dim), at their positions."""

    def read(self, slots: slice | torch.Tensor, tokens: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of some slots and tokens, each (slots, kv heads, tokens, head dim), in the compute dtype."""


class FloatLayerCache:
    """A `LayerCache` in the compute dtype.

    Args:
        keys: (slots, kv heads, tokens, head dim).
        values: Like keys.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.heads = CachedHeads(keys, values)

    def write(self, layout: BatchLayout, keys: torch.Tensor, values: torch.Tensor) -> None:
        """See LayerCache."""
        _put(self.heads.keys, layout, keys)
        _put(self.heads.values, layout, values)

    def read(self, slots: slice | torch.Tensor, tokens: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """See LayerCache."""
        return self.heads.keys[slots, :, tokens], self.heads.values[slots, :, tokens]


class Int8LayerCache:
    """A `LayerCache` of int8 numbers with a float32 scale for each token and head, rounded symmetrically.

    Args:
        codes: Of keys and values, (2, slots, kv heads, tokens, head dim) int8.
        scales: (2, slots, kv heads, tokens) float32.
        dtype: The compute dtype.
    """

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> None:
        self.heads = CachedHeads(*codes, *scales)
        self._codes = codes
        self._scales = scales
        self._dtype = dtype

    def write(self, layout: BatchLayout, keys: torch.Tensor, values: torch.Tensor) -> None:
        """See LayerCache."""
        for codes, scales, heads in zip(self._codes, self._scales, (keys, values), strict=True):
            largest = heads.float().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            _put(codes, layout, (heads * (127 / largest)).round_().to(torch.int8))
            _put(scales, layout, largest[..., 0] / 127)

    def read(self, slots: slice | torch.Tensor, tokens: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """See LayerCache."""
        keys, values = (
            (codes[slots, :, tokens] * scales[slots, :, tokens, None]).to(self._dtype)
            for codes, scales in zip(self._codes, self._scales, strict=True)
        )
        return keys, values


class KvCache:
    """One LayerCache a layer of the stage, allocated at once."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        num_kv_heads: int,
        max_tokens: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        is_int8: bool = False,
    ) -> None:
        self.num_slots = num_slots
        self.max_tokens = max_tokens
        shape = (num_layers, 2, num_slots, num_kv_heads, max_tokens)
        heads = torch.zeros(*shape, head_dim, dtype=torch.int8 if is_int8 else dtype, device=device)
        scales = torch.zeros(shape if is_int8 else 0, device=device)
        self.memory_bytes = heads.nbytes + scales.nbytes
        self._slots = (heads, scales) if is_int8 else (heads,)
        self.layers: tuple[LayerCache, ...] = (
            tuple(Int8LayerCache(*layer, dtype) for layer in zip(heads, scales, strict=True))
            if is_int8
            else tuple(FloatLayerCache(*layer) for layer in heads)
        )

    def clear(self, slot: int) -> None:
        """Forgets all tokens of a slot."""
        for numbers in self._slots:
            numbers[:, :, slot].zero_()


def _put(cached: torch.Tensor, layout: BatchLayout, new: torch.Tensor) -> None:
    """Stores (rows, kv heads, ...) of new tokens at their positions in (slots, kv heads, tokens, ...)."""
    if layout.is_one_token_each:
        cached[layout.slot_index, :, layout.positions] = new
        return
    row = 0
    for slot, start, count in zip(layout.slots, layout.starts, layout.counts, strict=True):
        cached[slot, :, start : start + count] = new[row : row + count].transpose(0, 1)
        row += count
