"""Keys and values of the sequences in flight, in slots of fixed capacity."""

import torch

from stage_server.layout import BatchLayout


class LayerCache:
    """Keys and values of one layer.

    Attributes:
        keys: (slots, kv heads, tokens, head dim), compute dtype; in an order of their own where `NativeGlue` serves.
        values: Like keys.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys = keys
        self.values = values

    def write(self, layout: BatchLayout, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Stores the new tokens' keys and values, each (rows, kv heads, head dim), at their positions."""
        if layout.is_one_token_each:
            self.keys[layout.slot_index, :, layout.positions] = keys
            self.values[layout.slot_index, :, layout.positions] = values
            return
        row = 0
        for slot, start, count in zip(layout.slots, layout.starts, layout.counts, strict=True):
            end = start + count
            self.keys[slot, :, start:end] = keys[row : row + count].transpose(0, 1)
            self.values[slot, :, start:end] = values[row : row + count].transpose(0, 1)
            row += count

    def gather(self, layout: BatchLayout, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the layout's slots, from a position to the end of the longest sequence.

        Returns:
            Two of (sequences, kv heads, tokens, head dim).
        """
        seen = slice(first, max(layout.ends))
        slots = layout.slot_index if layout.contiguous_slots is None else layout.contiguous_slots
        return self.keys[slots, :, seen], self.values[slots, :, seen]


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
    ) -> None:
        self.num_slots = num_slots
        self.max_tokens = max_tokens
        shape = (2, num_layers, num_slots, num_kv_heads, max_tokens, head_dim)
        self._storage = torch.zeros(shape, dtype=dtype, device=device)
        keys, values = self._storage
        self.layers = [LayerCache(keys[layer], values[layer]) for layer in range(num_layers)]

    @property
    def memory_bytes(self) -> int:
        """Bytes of keys and values."""
        return self._storage.nbytes
