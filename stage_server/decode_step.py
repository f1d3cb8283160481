"""A decode step through some layers as one call of native code."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch

from quantizer.native.call import KernelCall
from quantizer.native.library import kernels
from quantizer.native.program import Program
from stage_server.decoder_layer import DecoderLayer
from stage_server.kv_cache import LayerCache
from stage_server.positions import Positions, Rotation


@dataclass(frozen=True)
class StepTensors:
    """What all layers of a step read and write, float32 (rows, features) each.

    Attributes:
        hidden: The residual stream.
        added: What the layer before adds to it.
        normed: What a layer's first matrices read.
        projected: Queries, keys and values.
        attended: What attention gives.
        expanded: What the first matrices of the feed-forward network give.
        gated: What its last matrix reads.
        work: uint8 (rows, bytes), of the matrix products.
    """

    hidden: torch.Tensor
    added: torch.Tensor
    normed: torch.Tensor
    projected: torch.Tensor
    attended: torch.Tensor
    expanded: torch.Tensor
    gated: torch.Tensor
    work: torch.Tensor

    @classmethod
    def of(cls, layers: Sequence[DecoderLayer], num_rows: int) -> Self:
        """For layers of one model and up to `num_rows` sequences."""
        linears = layers[0].linears
        num_hidden = linears.qkv.in_features
        widths = (
            *(num_hidden, num_hidden, num_hidden, linears.qkv.out_features, linears.attention_out.in_features),
            *(linears.ffn_in.out_features, linears.ffn_out.in_features),
        )
        hidden, added, normed, projected, attended, expanded, gated = (torch.empty(num_rows, each) for each in widths)
        work_bytes = max(linear.work_bytes for layer in layers for linear in layer.linears)
        work = torch.empty(num_rows, work_bytes, dtype=torch.uint8)
        return cls(hidden, added, normed, projected, attended, expanded, gated, work)

    def first(self, num_rows: int) -> Self:
        """The same memory for no more than `num_rows` sequences."""
        return type(self)(*(getattr(self, field.name)[:num_rows] for field in fields(self)))


class DecodeStep:
    """Takes one new token of each of some sequences through layers, always in the same memory.

    Args:
        tensors: For just so many sequences.
        table: int64 (3, sequences), the layout of the step.
        rotations: By number, those that the layers apply.
        program: All calls of all layers.
    """

    def __init__(
        self, tensors: StepTensors, table: torch.Tensor, rotations: dict[int, Rotation], program: Program
    ) -> None:
        self._tensors = tensors
        self._table = table
        self._rotations = rotations
        self._program = program

    @classmethod
    def of(
        cls, layers: Sequence[DecoderLayer], caches: Sequence[LayerCache], tensors: StepTensors, positions: Positions
    ) -> Self | None:
        """For steps of as many sequences as this one; None where native kernels do not serve all of a layer.

        Args:
            layers: In their order.
            caches: One a layer.
            tensors: For just so many sequences.
            positions: Of any such step.
        """
        native = kernels()
        table = positions.layout.table.clone()
        numbers = {layer.rotary for layer in layers if layer.rotary is not None}
        rotations = {number: _copy(positions.rotation(number)) for number in numbers}
        calls: list[KernelCall] = []
        for layer, cache in zip(layers, caches, strict=True):
            of_layer = layer.step_calls(tensors, table, rotations, cache)
            if of_layer is None:
                return None
            calls += of_layer
        return cls(tensors, table, rotations, Program(native, calls)) if native else None

    def run(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """What the layers make of (rows, hidden) states of new tokens."""
        tensors = self._tensors
        tensors.hidden.copy_(hidden)
        tensors.added.zero_()
        self._table.copy_(positions.layout.table)
        for number, rotation in self._rotations.items():
            for kept, new in zip(rotation, positions.rotation(number), strict=True):
                kept.copy_(new)
        self._program.run()
        return tensors.hidden + tensors.added


def _copy(rotation: Rotation) -> Rotation:
    cosines, sines = rotation
    return cosines.clone(), sines.clone()
