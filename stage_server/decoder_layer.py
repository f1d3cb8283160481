"""One decoder layer: the same code for every family, told apart by its spec."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from quantizer.linear import QuantizedLinear
from quantizer.native.call import KernelCall
from stage_server.families import DecoderSpec
from stage_server.glue import NativeGlue, TorchGlue
from stage_server.kv_cache import LayerCache
from stage_server.norms import LayerNorms
from stage_server.positions import Positions, Rotation

if TYPE_CHECKING:  # it is made for layers
    from stage_server.decode_step import StepTensors


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

    def __iter__(self) -> Iterator[QuantizedLinear]:
        """In the order in which they are multiplied with."""
        return iter((self.qkv, self.attention_out, self.ffn_in, self.ffn_out))


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
        self._index = index
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

    @property
    def rotary(self) -> int | None:
        """Which of the model's rotations the layer applies; None is none."""
        return self._spec.layers[self._index].rotary

    def step_calls(
        self, tensors: "StepTensors", table: torch.Tensor, rotations: Mapping[int, Rotation], cache: LayerCache
    ) -> list[KernelCall] | None:
        """What `forward` does for one new token of each sequence, as calls of native kernels that can be repeated.

        The layer reads `hidden + added`, and what it gives is again the sum of the two.

        Args:
            tensors: Of just so many sequences.
            table: int64 (3, sequences), the layout at the time of the call.
            rotations: By number; likewise.
            cache: Of the layer.

        Returns:
            None where native kernels do not serve all of the layer.
        """
        glue, norms, linears = self._native_glue, self._norms, self.linears
        if glue is None or not self._spec.is_pre_norm:
            return None
        rotation = rotations[self.rotary] if self.rotary is not None else None
        t = tensors
        calls = (
            glue.sum_and_norm(t.hidden, t.added, t.normed, norms.attention),
            linears.qkv.kernel_call(t.normed, t.projected, t.work),
            glue.attention(t.projected, t.attended, table, rotation, cache),
            linears.attention_out.kernel_call(t.attended, t.added, t.work),
            *(glue.norm_in_place(t.added, norm) for norm in (norms.attention_out,) if norm is not None),
            glue.sum_and_norm(t.hidden, t.added, t.normed, norms.ffn),
            linears.ffn_in.kernel_call(t.normed, t.expanded, t.work),
            glue.gate(t.expanded, t.gated),
            linears.ffn_out.kernel_call(t.gated, t.added, t.work),
            *(glue.norm_in_place(t.added, norm) for norm in (norms.ffn_out,) if norm is not None),
        )
        made = [call for call in calls if call is not None]
        return made if len(made) == len(calls) else None

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
