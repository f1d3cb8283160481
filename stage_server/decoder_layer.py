"""One decoder layer: the same code for every family, told apart by its spec."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from quantizer.linear import QuantizedLinear
from stage_server.activations import ACTIVATIONS
from stage_server.attention import Rotary, attend
from stage_server.families import DecoderSpec
from stage_server.families.spec import NormKind
from stage_server.kv_cache import LayerCache
from stage_server.layout import BatchLayout


@dataclass(frozen=True)
class Norm:
    """An RMS or layer norm over the last axis.

    Attributes:
        weight: (hidden,).
        bias: (hidden,) for a layer norm, None for an RMS norm.
    """

    kind: NormKind
    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Norms (rows, hidden)."""
        if self.kind is NormKind.RMS:
            return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
        return functional.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.eps)

    @property
    def memory_bytes(self) -> int:
        """Bytes of weight and bias."""
        return self.weight.nbytes + (self.bias.nbytes if self.bias is not None else 0)


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
    """Attention and feed-forward with their norms and residual sums."""

    def __init__(self, spec: DecoderSpec, attention_norm: Norm, ffn_norm: Norm, linears: LayerLinears) -> None:
        self.linears = linears
        self._spec = spec
        self._attention_norm = attention_norm
        self._ffn_norm = ffn_norm
        self._activation = ACTIVATIONS[spec.activation]

    @property
    def memory_bytes(self) -> int:
        """Bytes of weights with their metadata, biases and norms."""
        linears = (self.linears.qkv, self.linears.attention_out, self.linears.ffn_in, self.linears.ffn_out)
        norms = (self._attention_norm, self._ffn_norm)
        return sum(linear.memory_bytes for linear in linears) + sum(norm.memory_bytes for norm in norms)

    def forward(
        self,
        hidden: torch.Tensor,
        layout: BatchLayout,
        cache: LayerCache,
        rotary_table: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """Runs the layer on (rows, hidden), adding the new tokens to the cache; returns (rows, hidden)."""
        if self._spec.is_pre_norm:
            hidden = hidden + self._attend(self._attention_norm(hidden), layout, cache, rotary_table)
            return hidden + self._feed_forward(self._ffn_norm(hidden))
        hidden = self._attention_norm(hidden + self._attend(hidden, layout, cache, rotary_table))
        return self._ffn_norm(hidden + self._feed_forward(hidden))

    def _attend(
        self,
        hidden: torch.Tensor,
        layout: BatchLayout,
        cache: LayerCache,
        rotary_table: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        projected = self.linears.qkv.forward(hidden).split_with_sizes(self._spec.qkv_sizes, dim=-1)
        queries, keys, values = (part.view(len(hidden), -1, self._spec.head_dim) for part in projected)
        if rotary_table is not None:
            queries = Rotary.rotate(queries, rotary_table)
            keys = Rotary.rotate(keys, rotary_table)
        cache.write(layout, keys, values)
        return self.linears.attention_out.forward(attend(queries.contiguous(), cache, layout))

    def _feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        projected = self.linears.ffn_in.forward(hidden)
        if self._spec.is_gated:
            gate, up = projected.chunk(2, dim=-1)
            return self.linears.ffn_out.forward(self._activation(gate) * up)
        return self.linears.ffn_out.forward(self._activation(projected))
