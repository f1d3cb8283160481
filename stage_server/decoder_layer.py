"""One decoder layer: the same code for every family, told apart by its spec."""

from dataclasses import dataclass, fields

import torch
from torch.nn import functional

from quantizer.linear import QuantizedLinear
from stage_server.activations import ACTIVATIONS
from stage_server.attention import Attention
from stage_server.families import DecoderSpec
from stage_server.families.spec import NormKind
from stage_server.kv_cache import LayerCache
from stage_server.positions import Positions, rotate


@dataclass(frozen=True)
class Norm:
    """An RMS or layer norm over the last axis.

    Attributes:
        weight: Float32 (features,), or None for all ones.
        bias: Float32 (features,) of a layer norm that has weights, otherwise None.
    """

    kind: NormKind
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Norms (..., features), in float32 whatever the type of the result."""
        wide, features = hidden.float(), hidden.shape[-1:]
        if self.kind is NormKind.RMS:
            return functional.rms_norm(wide, features, self.weight, self.eps).to(hidden.dtype)
        return functional.layer_norm(wide, features, self.weight, self.bias, self.eps).to(hidden.dtype)

    @property
    def memory_bytes(self) -> int:
        """Bytes of weight and bias."""
        return sum(part.nbytes for part in (self.weight, self.bias) if part is not None)


@dataclass(frozen=True)
class LayerNorms:
    """The norms of a layer.

    Attributes:
        attention: Of what attention reads; without pre-norm of the residual sum behind it.
        ffn: The same of the feed-forward network.
        attention_out: Of what attention adds to the residual stream; None in most families, as the following.
        ffn_out: Of what the feed-forward network adds to it.
        query: Of each query head.
        key: Of each key head.
    """

    attention: Norm
    ffn: Norm
    attention_out: Norm | None = None
    ffn_out: Norm | None = None
    query: Norm | None = None
    key: Norm | None = None


@dataclass
class LayerLinears:
    """The weight matrices of a layer, those that read the same input stacked into one.

    Attributes:
        qkv: Query, key and value projections stacked along the output axis.
        ffn_in: Gate and up projection stacked, or the one input projection.
    """

    qkv: QuantizedLinear
    attention_out: QuantizedLinear
    ffn_in: QuantizedLinear
    ffn_out: QuantizedLinear


class DecoderLayer:
    """Attention and feed-forward with their norms and residual sums.

    Args:
        spec: The model.
        index: Which of its layers.
        norms: Its norms.
        linears: Its weight matrices.
    """

    def __init__(self, spec: DecoderSpec, index: int, norms: LayerNorms, linears: LayerLinears) -> None:
        self.linears = linears
        self._spec = spec
        self._norms = norms
        self._rotary = spec.layers[index].rotary
        self._attention = Attention(spec.attention_scale, spec.layers[index].window, spec.attention_soft_cap)
        self._activation = ACTIVATIONS[spec.activation]

    @property
    def memory_bytes(self) -> int:
        """Bytes of weights with their metadata, biases and norms."""
        parts = (getattr(held, field.name) for held in (self.linears, self._norms) for field in fields(held))
        return sum(part.memory_bytes for part in parts if part is not None)

    def forward(self, hidden: torch.Tensor, positions: Positions, cache: LayerCache) -> torch.Tensor:
        """Runs the layer on (rows, hidden), adding the new tokens to the cache; returns (rows, hidden)."""
        norms = self._norms
        if self._spec.is_pre_norm:
            hidden = hidden + _normed(self._attend(norms.attention(hidden), positions, cache), norms.attention_out)
            return hidden + _normed(self._feed_forward(norms.ffn(hidden)), norms.ffn_out)
        hidden = norms.attention(hidden + self._attend(hidden, positions, cache))
        return norms.ffn(hidden + self._feed_forward(hidden))

    def _attend(self, hidden: torch.Tensor, positions: Positions, cache: LayerCache) -> torch.Tensor:
        projected = self.linears.qkv.forward(hidden).split_with_sizes(self._spec.qkv_sizes, dim=-1)
        queries, keys, values = (part.view(len(hidden), -1, self._spec.head_dim) for part in projected)
        queries, keys = _normed(queries, self._norms.query), _normed(keys, self._norms.key)
        if self._rotary is not None:
            rotation = positions.rotation(self._rotary)
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        cache.write(positions.layout, keys, values)
        return self.linears.attention_out.forward(self._attention(queries.contiguous(), cache, positions))

    def _feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        projected = self.linears.ffn_in.forward(hidden)
        if self._spec.is_gated:
            gate, up = projected.chunk(2, dim=-1)
            return self.linears.ffn_out.forward(self._activation(gate) * up)
        return self.linears.ffn_out.forward(self._activation(projected))


def _normed(hidden: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    return hidden if norm is None else norm(hidden)
