"""Layers and their caches, run one after another."""

from collections.abc import Sequence

import torch

from stage_server.decode_step import DecodeStep, StepTensors
from stage_server.decoder_layer import DecoderLayer
from stage_server.kv_cache import LayerCache
from stage_server.positions import Positions

#: Numbers of sequences whose steps are kept ready. Lanes differ little, and sequences end one at a time.
_MAX_STEPS = 8


class LayerRun:
    """Takes micro-batches through layers; a decode step in a single call where native kernels serve all of it.

    Args:
        layers: At least one.
        caches: One a layer.
    """

    def __init__(self, layers: Sequence[DecoderLayer], caches: Sequence[LayerCache]) -> None:
        self._layers = layers
        self._caches = caches
        self._tensors: StepTensors | None = None
        self._steps: dict[int, DecodeStep | None] = {}

    def forward(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """(rows, hidden) behind the last layer, of (rows, hidden) before the first; new tokens go to the caches."""
        step = self.step(hidden, positions)
        if step is not None:
            return step.run(hidden, positions)
        for layer, cache in zip(self._layers, self._caches, strict=True):
            hidden = layer.forward(hidden, positions, cache)
        return hidden

    def step(self, hidden: torch.Tensor, positions: Positions) -> DecodeStep | None:
        """What takes such a micro-batch through all layers at once; None where there is no such thing."""
        num_rows = len(hidden)
        is_native = hidden.device.type == "cpu" and hidden.dtype == torch.float32 and not hidden.requires_grad
        if not is_native or not positions.layout.is_one_token_each:
            return None
        if self._tensors is None or num_rows > len(self._tensors.hidden):
            self._tensors = StepTensors.of(self._layers, num_rows)
            self._steps.clear()
        if num_rows not in self._steps:
            if len(self._steps) == _MAX_STEPS:
                del self._steps[next(iter(self._steps))]
            tensors = self._tensors.first(num_rows)
            self._steps[num_rows] = DecodeStep.of(self._layers, self._caches, tensors, positions)
        return self._steps[num_rows]
