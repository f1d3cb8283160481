"""One decoder layer: the same code for every family, told apart by its spec."""

from dataclasses import dataclass, fields

import torch

from quantizer.linear import QuantizedLinear
from stage_server.families import DecoderSpec
from stage_server.glue import NativeGlue, TorchGlue
from stage_server.kv_cache import LayerCache
from stage_server.norms import LayerNorms
from stage_server.positions import Positions


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
        self._torch_glue = TorchGlue(spec, index, norms)
        self._native_glue = NativeGlue.of(spec, index, norms)

    @property
    def memory_bytes(self) -> int:
        """Bytes of weights with their metadata, biases and norms."""
        parts = (getattr(held, field.name) for held in (self.linears, self._norms) for field in fields(held))
        return sum(part.memory_bytes for part in parts if part is not None)

    def forward(self, hidden: torch.Tensor, positions: Positions, cache: LayerCache) -> torch.Tensor:
        """Runs the layer on (rows, hidden), adding the new tokens to the cache; returns (rows, hidden)."""
        norms, glue = self._norms, self._glue(hidden)
        if self._spec.is_pre_norm:
            attended = self._attend(glue, glue.norm(hidden, norms.attention), positions, cache)
            if norms.attention_out is not None:
                attended = glue.norm(attended, norms.attention_out)
            hidden, normed = glue.norm_of_sum(hidden, attended, norms.ffn)
            projected = self._feed_forward(glue, normed)
            return hidden + (projected if norms.ffn_out is None else glue.norm(projected, norms.ffn_out))
        _, hidden = glue.norm_of_sum(hidden, self._attend(glue, hidden, positions, cache), norms.attention)
        return glue.norm_of_sum(hidden, self._feed_forward(glue, hidden), norms.ffn)[1]

    def _glue(self, hidden: torch.Tensor) -> TorchGlue | NativeGlue:
        """The native kernels where they serve these states; they know nothing of gradients."""
        is_native = hidden.dtype == torch.float32 and hidden.device.type == "cpu" and not hidden.requires_grad
        return self._native_glue if is_native and self._native_glue is not None else self._torch_glue

    def _attend(
        self, glue: TorchGlue | NativeGlue, hidden: torch.Tensor, positions: Positions, cache: LayerCache
    ) -> torch.Tensor:
        return self.linears.attention_out.forward(glue.attend(self.linears.qkv.forward(hidden), positions, cache))

    def _feed_forward(self, glue: TorchGlue | NativeGlue, hidden: torch.Tensor) -> torch.Tensor:
        return self.linears.ffn_out.forward(glue.activate(self.linears.ffn_in.forward(hidden)))
