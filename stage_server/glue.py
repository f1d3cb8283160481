"""What a decoder layer does between its matrix products: by torch on any device, or by native kernels on a CPU."""

from typing import Self

import torch

from quantizer.native.call import KernelCall
from quantizer.native.decoder import GATE_ACTIVATIONS, AttentionKind, DecoderKernels, decoder_kernels
from stage_server.activations import activated
from stage_server.attention import Attention
from stage_server.families import DecoderSpec
from stage_server.families.spec import NormKind
from stage_server.kv_cache import LayerCache
from stage_server.norms import LayerNorms, Norm
from stage_server.positions import Positions, Rotation, rotate


class TorchGlue:
    """By torch: on any device, in any type, with gradients.

    Args:
        spec: The model.
        index: Which of its layers.
        norms: The layer's norms.
    """

    def __init__(self, spec: DecoderSpec, index: int, norms: LayerNorms) -> None:
        self._spec = spec
        self._norms = norms
        self._rotary = spec.layers[index].rotary
        self._attention = Attention(spec.attention_scale, spec.layers[index].window, spec.attention_soft_cap)

    def norm(self, hidden: torch.Tensor, norm: Norm) -> torch.Tensor:
        """The norm of (rows, hidden)."""
        return norm(hidden)

    def norm_of_sum(self, hidden: torch.Tensor, added: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden + added, and the norm of that; all (rows, hidden)."""
        total = hidden + added
        return total, norm(total)

    def attend(self, projected: torch.Tensor, positions: Positions, cache: LayerCache) -> torch.Tensor:
        """Attention of new tokens over their own sequences, once their keys and values are in the cache.

        Args:
            projected: (rows, queries + keys + values). It may be overwritten.
            positions: Of the rows.
            cache: Of the layer.

        Returns:
            (rows, heads * head_dim).
        """
        parts = projected.split_with_sizes(self._spec.qkv_sizes, dim=-1)
        queries, keys, values = (part.view(len(projected), -1, self._spec.head_dim) for part in parts)
        if self._norms.query is not None and self._norms.key is not None:
            queries, keys = self._norms.query(queries), self._norms.key(keys)
        if self._rotary is not None:
            rotation = positions.rotation(self._rotary)
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        cache.write(positions.layout, keys, values)
        return self._attention(queries.contiguous(), cache, positions)

    def activate(self, projected: torch.Tensor) -> torch.Tensor:
        """The feed-forward activation (rows, ffn) of what its first matrices give."""
        return activated(projected, self._spec.activation, is_gated=self._spec.is_gated)


class NativeGlue:
    """By native kernels: float32 on a CPU, without gradients. Methods as in `TorchGlue`.

    Args:
        kernels: Of this process.
        kind: How the layer attends.
        rotary: Which of the model's rotations; None is none.
        spec: The model.
    """

    def __init__(self, kernels: DecoderKernels, kind: AttentionKind, rotary: int | None, spec: DecoderSpec) -> None:
        self._kernels = kernels
        self._kind = kind
        self._rotary = rotary
        self._activation = spec.activation
        self._is_gated = spec.is_gated

    @classmethod
    def of(cls, spec: DecoderSpec, index: int, norms: LayerNorms) -> Self | None:
        """For a layer; None where there are no native kernels or they do not serve it."""
        kernels, query, key = decoder_kernels(), norms.query, norms.key
        has_other_norms = query is not None and query.kind is not NormKind.RMS
        if kernels is None or has_other_norms or (query is None) != (key is None):
            return None
        kind = AttentionKind(
            num_heads=spec.num_heads,
            scale=spec.attention_scale,
            window=spec.layers[index].window,
            soft_cap=spec.attention_soft_cap,
            slopes=spec.alibi_slopes.contiguous() if spec.alibi_slopes is not None else None,
            head_norms=(query.weight, key.weight) if query is not None and key is not None else None,
            eps=spec.norm_eps,
        )
        if not kind.is_served(spec.num_kv_heads, spec.head_dim):
            return None
        return cls(kernels, kind, spec.layers[index].rotary, spec)

    def norm(self, hidden: torch.Tensor, norm: Norm) -> torch.Tensor:
        """As in TorchGlue."""
        return self._kernels.norm(hidden, norm.of_rows)

    def norm_of_sum(self, hidden: torch.Tensor, added: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        """As in TorchGlue."""
        return self._kernels.norm_of_sum(hidden, added, norm.of_rows)

    def attend(self, projected: torch.Tensor, positions: Positions, cache: LayerCache) -> torch.Tensor:
        """As in TorchGlue."""
        rotation = positions.rotation(self._rotary) if self._rotary is not None else None
        return self._kernels.attend(projected, cache.heads, positions.layout.table, rotation, self._kind)

    def activate(self, projected: torch.Tensor) -> torch.Tensor:
        """As in TorchGlue."""
        if self._is_gated and self._activation in GATE_ACTIVATIONS:
            return self._kernels.gated_product(projected, self._activation)
        return activated(projected, self._activation, is_gated=self._is_gated)

    def sum_and_norm(self, hidden: torch.Tensor, added: torch.Tensor, normed: torch.Tensor, norm: Norm) -> KernelCall:
        """Adds `added` to `hidden`, where it stands, and writes the norm of that to `normed`; all (rows, hidden)."""
        return self._kernels.sum_and_norm(hidden, added, hidden, normed, norm.of_rows)

    def norm_in_place(self, hidden: torch.Tensor, norm: Norm) -> KernelCall:
        """Norms (rows, hidden) where it stands."""
        return self._kernels.sum_and_norm(hidden, None, None, hidden, norm.of_rows)

    def attention(
        self,
        projected: torch.Tensor,
        attended: torch.Tensor,
        table: torch.Tensor,
        rotation: Rotation | None,
        cache: LayerCache,
    ) -> KernelCall:
        """What `attend` does, from `projected` to `attended`, at what `table` and `rotation` hold by then."""
        return self._kernels.attention(projected, attended, cache.heads, table, rotation, kind=self._kind)

    def gate(self, projected: torch.Tensor, gated: torch.Tensor) -> KernelCall | None:
        """What `activate` does, from `projected` to `gated`; None where torch does it."""
        if self._is_gated and self._activation in GATE_ACTIVATIONS:
            return self._kernels.gate(projected, gated, self._activation)
        return None
