"""Layers and their caches, run one after another."""

from collections.abc import Callable, Sequence

import torch

from stage_server.decode_step import DecodeStep, StepTensors
from stage_server.decoder_layer import DecoderLayer
from stage_server.graph_step import CudaGraphs, GraphStep, StepShape
from stage_server.kv_cache import LayerCache
from stage_server.positions import Positions

#: Shapes of steps that are kept ready. Lanes differ little, and sequences end one at a time.
_MAX_STEPS = 16


class LayerRun:
    """Takes micro-batches through layers; a decode step all at once where that can be.

    On a CPU it is a single call, where native kernels serve all of it, on a GPU a graph.

    Args:
        layers: At least one.
        caches: One a layer.
    """

    def __init__(self, layers: Sequence[DecoderLayer], caches: Sequence[LayerCache]) -> None:
        self._layers = layers
        self._caches = caches
        self._tensors: StepTensors | None = None
        self._graphs = CudaGraphs()
        self._steps: dict[object, DecodeStep | GraphStep | None] = {}

    def forward(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """(rows, hidden) behind the last layer, of (rows, hidden) before the first; new tokens go to the caches."""
        step = self.step(hidden, positions)
        if step is not None:
            return step.run(hidden, positions)
        for layer, cache in zip(self._layers, self._caches, strict=True):
            hidden = layer.forward(hidden, positions, cache)
        return hidden

    def step(self, hidden: torch.Tensor, positions: Positions) -> DecodeStep | GraphStep | None:
        """What takes such a micro-batch through all layers at once; None where there is no such thing."""
        if hidden.requires_grad or not positions.layout.is_one_token_each:
            return None
        if hidden.device.type == "cuda":
            shape = StepShape.of(positions.layout, self._caches[0].heads.keys.shape[2])
            return self._kept(shape, lambda: self._graph_step(shape, hidden, positions))
        if hidden.dtype != torch.float32:
            return None
        num_rows = len(hidden)
        if self._tensors is None or num_rows > len(self._tensors.hidden):
            self._tensors = StepTensors.of(self._layers, num_rows)
            self._steps.clear()
        tensors = self._tensors
        return self._kept(
            num_rows, lambda: DecodeStep.of(self._layers, self._caches, tensors.first(num_rows), positions)
        )

    def _kept(self, shape: object, make: Callable[[], DecodeStep | GraphStep | None]) -> DecodeStep | GraphStep | None:
        step = self._steps.pop(shape) if shape in self._steps else make()
        if len(self._steps) == _MAX_STEPS:
            del self._steps[next(iter(self._steps))]  # the one that was used longest ago
        self._steps[shape] = step
        return step

    def _graph_step(self, shape: StepShape, hidden: torch.Tensor, positions: Positions) -> GraphStep:
        layers = tuple(zip(self._layers, self._caches, strict=True))
        return GraphStep(layers, shape, hidden, positions, self._graphs.record)
