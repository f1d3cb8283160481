"""How layers know where tokens stand: rotations of queries and keys, biases by distance, and who may see whom."""

import torch

from stage_server.families import DecoderSpec
from stage_server.families.spec import RotarySpec
from stage_server.layout import BatchLayout

#: Cosines and sines, each (rows, 1, rotated channels), of the type computed in.
Rotation = tuple[torch.Tensor, torch.Tensor]


class PositionEncoding:
    """What a model knows of positions inside its layers.

    Args:
        spec: The model.
        device: Where it computes.
        dtype: Type of its activations.
    """

    def __init__(self, spec: DecoderSpec, device: torch.device, dtype: torch.dtype) -> None:
        self._rotaries = tuple(Rotary(rotary, device, dtype) for rotary in spec.rotaries)
        self._slopes = (
            spec.alibi_slopes.to(device).view(spec.num_kv_heads, -1) if spec.alibi_slopes is not None else None
        )
        self._dtype = dtype

    def at(self, layout: BatchLayout) -> "Positions":
        """The positions of one micro-batch."""
        return Positions(layout, self._rotaries, self._slopes, self._dtype)


class Rotary:
    """Rotates queries and keys by their positions, in Hugging Face's layout of halves."""

    def __init__(self, spec: RotarySpec, device: torch.device, dtype: torch.dtype) -> None:
        self._frequencies = spec.frequencies.to(device)
        self._scale = spec.scale
        self._dtype = dtype

    def table(self, positions: torch.Tensor) -> Rotation:
        """The rotation at (rows,) positions; angles are computed in float32."""
        angles = positions[:, None].float() * self._frequencies[None, :]
        angles = torch.cat((angles, angles), dim=-1)[:, None, :]
        return (angles.cos() * self._scale).to(self._dtype), (angles.sin() * self._scale).to(self._dtype)


def rotate(heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotates (rows, heads, head_dim); channels behind those of the rotation stay as they are."""
    cosines, sines = rotation
    num_rotated = cosines.shape[-1]
    if num_rotated < heads.shape[-1]:
        rotated = rotate(heads[..., :num_rotated], rotation)
        return torch.cat((rotated, heads[..., num_rotated:]), dim=-1)
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return heads * cosines + turned * sines


class Positions:
    """The positions of one micro-batch. What its layers share is made once, for the first of them that asks.

    Masks say of scores who may see whom: True for a query that sees a key; or, under linear biases, what is added to
    the score, `slope * (key's position - query's position)`, and minus infinity where a query does not see a key.
    """

    def __init__(
        self,
        layout: BatchLayout,
        rotaries: tuple[Rotary, ...],
        slopes: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.layout = layout
        self._rotaries = rotaries
        self._slopes = slopes
        self._dtype = dtype
        self._rotations: dict[int, Rotation] = {}
        self._decode_masks: dict[int | None, torch.Tensor | None] = {}
        self._visible: dict[tuple[int, int, int | None], torch.Tensor] = {}

    def rotation(self, rotary: int) -> Rotation:
        """One of the model's rotations, at every row."""
        if rotary not in self._rotations:
            self._rotations[rotary] = self._rotaries[rotary].table(self.layout.positions)
        return self._rotations[rotary]

    def decode_mask(self, window: int | None) -> torch.Tensor | None:
        """The mask of sequences with one new token each, over the keys that `Attention` reads.

        Returns:
            Bool (sequences, 1, 1, keys), or biases (sequences, kv heads, sharing, keys); None where all keys are seen.
        """
        if window not in self._decode_masks:
            self._decode_masks[window] = self._make_decode_mask(window)
        return self._decode_masks[window]

    def visible(self, start: int, end: int, window: int | None) -> torch.Tensor:
        """Bool (rows, keys): which keys, of those from `first_seen` on, the rows [start, end) of a sequence see."""
        if (start, end, window) not in self._visible:
            keys, queries = self._keys_and_queries(start, end, window)
            causal = keys <= queries
            self._visible[start, end, window] = causal if window is None else causal & (keys > queries - window)
        return self._visible[start, end, window]

    def prefill_mask(self, start: int, end: int, window: int | None) -> torch.Tensor | None:
        """The mask of the rows [start, end) of a sequence over its keys from `first_seen` on.

        Returns:
            Bool (rows, keys), or biases (kv heads, sharing, rows, keys); None where rows see all before them.
        """
        if self._slopes is None:
            is_causal = start == 0 and (window is None or end <= window)
            return None if is_causal else self.visible(start, end, window)
        keys, queries = self._keys_and_queries(start, end, window)
        return self._biases(self._slopes[:, :, None, None], keys - queries, self.visible(start, end, window))

    def of(self, layout: BatchLayout) -> "Positions":
        """Of another micro-batch of the same model."""
        return Positions(layout, self._rotaries, self._slopes, self._dtype)

    @property
    def has_biases(self) -> bool:
        """Whether masks are biases."""
        return self._slopes is not None

    def _keys_and_queries(self, start: int, end: int, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions (keys,) and (rows, 1)."""
        keys = torch.arange(first_seen(start, window), end, device=self.layout.device)
        return keys, torch.arange(start, end, device=self.layout.device)[:, None]

    def _make_decode_mask(self, window: int | None) -> torch.Tensor | None:
        shortest, longest = min(self.layout.ends), max(self.layout.ends)
        if shortest == longest and self._slopes is None:
            return None
        keys = torch.arange(first_seen(shortest - 1, window), longest, device=self.layout.device)
        queries = self.layout.positions[:, None, None, None]
        visible = keys <= queries
        if window is not None:
            visible = visible & (keys > queries - window)
        if self._slopes is None:
            return visible
        return self._biases(self._slopes[None, :, :, None], keys - queries, visible)

    def _biases(self, slopes: torch.Tensor, distances: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        return (slopes * distances).masked_fill_(~visible, -torch.inf).to(self._dtype)


def first_seen(position: int, window: int | None) -> int:
    """The first position that a query sees."""
    return 0 if window is None else max(0, position - window + 1)
