"""Calibration samples on their way through a model, a layer at a time."""

from collections.abc import Sequence

import torch

from llmpq.errors import InvalidInputError
from llmpq.plan import LayerPrecision
from stage_server.decoder_layer import DecoderLayer
from stage_server.device import ComputeDevice
from stage_server.families import DecoderSpec
from stage_server.kv_cache import FloatLayerCache
from stage_server.layout import BatchLayout
from stage_server.loader import ModelLoader
from stage_server.positions import PositionEncoding

#: What the exact model is stored at.
EXACT = LayerPrecision("w16")
#: Token ids of calibration sequences.
Samples = tuple[tuple[int, ...], ...]
#: Hidden states of each sample, (tokens, hidden), of the type computed in.
States = list[torch.Tensor]


class SampleRun:
    """Takes hidden states of the samples through layers that the caller holds; each sample starts at position 0.

    Args:
        loader: Of the model.
        device: Where to compute.
        samples: Token ids of sequences, not longer than the model's context.

    Raises:
        InvalidInputError: No samples, an empty or too long one, or a token that the model does not have.
    """

    def __init__(self, loader: ModelLoader, device: ComputeDevice, samples: Samples) -> None:
        spec = loader.spec
        _check_samples(samples, spec)
        self.samples = samples
        self._loader = loader
        self._device = device
        encoding = PositionEncoding(spec, device.torch_device, device.compute_dtype)
        layouts = [BatchLayout((0,), (0,), (len(sample),), device.torch_device) for sample in samples]
        self._positions = [encoding.at(layout) for layout in layouts]

    def embedded(self) -> States:
        """What the first layer reads; holds the embedding only while it is used."""
        embedding = self._loader.load_embedding()
        return [
            embedding.forward(torch.tensor(sample, device=self._device.torch_device), positions.layout)
            for sample, positions in zip(self.samples, self._positions, strict=True)
        ]

    def through(self, layer: DecoderLayer, states: Sequence[torch.Tensor]) -> States:
        """What a layer makes of the states before it."""
        return [self.through_sample(layer, sample, state) for sample, state in enumerate(states)]

    def through_sample(self, layer: DecoderLayer, sample: int, state: torch.Tensor) -> torch.Tensor:
        """What a layer makes of the states of one sample. Nothing is kept of it, so gradients may flow through."""
        return layer.forward(state, self._positions[sample], self._empty_cache(len(state)))

    def _empty_cache(self, num_tokens: int) -> FloatLayerCache:
        shape = (1, self._loader.spec.num_kv_heads, num_tokens, self._loader.spec.head_dim)
        keys = torch.zeros(shape, dtype=self._device.compute_dtype, device=self._device.torch_device)
        return FloatLayerCache(keys, torch.zeros_like(keys))


def _check_samples(samples: Samples, spec: DecoderSpec) -> None:
    if not samples or not all(samples):
        raise InvalidInputError("Calibration needs at least one sample, and none may be empty.", subject="samples")
    if max(map(len, samples)) > spec.max_positions:
        raise InvalidInputError(
            f"A calibration sample is longer than the model's context of {spec.max_positions} tokens.",
            subject="samples",
        )
    if max(map(max, samples)) >= spec.vocab_size:
        raise InvalidInputError(
            f"A calibration token is not below the vocabulary size {spec.vocab_size}.",
            subject="samples",
        )
