"""What the linears of each layer read while calibration samples run through the exact model, a layer at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Generic, Protocol, TypeVar

import torch

from llmpq.errors import InvalidInputError
from llmpq.plan import LayerPrecision
from quantizer.linear import QuantizedLinear
from stage_server.decoder_layer import DecoderLayer, LayerLinears
from stage_server.device import ComputeDevice
from stage_server.families import DecoderSpec
from stage_server.kv_cache import KvCache
from stage_server.layout import BatchLayout
from stage_server.loader import ModelLoader
from stage_server.positions import PositionEncoding
from stage_server.source import SourceLayer

_EXACT = LayerPrecision("w16")


class Statistics(Protocol):
    """Takes in what a linear reads."""

    def update(self, rows: torch.Tensor) -> None:
        """Takes in a batch (rows, features)."""


S = TypeVar("S", bound=Statistics)


@dataclass(frozen=True)
class CalibratedLayer(Generic[S]):
    """A layer of the checkpoint with statistics of what its linears read, both by role (see LayerLinears)."""

    index: int
    source: SourceLayer
    inputs: dict[str, S]


def calibrated_layers(
    loader: ModelLoader,
    device: ComputeDevice,
    samples: tuple[tuple[int, ...], ...],
    new_statistics: Callable[[], S],
    end_layer: int | None = None,
) -> Iterator[CalibratedLayer[S]]:
    """Runs the samples through the exact model, layer by layer from the first on; holds one layer at a time.

    Because the inputs are those of the exact model, what is made of a layer depends neither on the stage that it is on
    nor on the precision of the layers before it.

    Args:
        loader: Of the model.
        device: Where to compute.
        samples: Token ids of calibration sequences, not longer than the model's context.
        new_statistics: Makes the collector of one linear.
        end_layer: One past the last layer wanted; None is all layers.

    Raises:
        InvalidInputError: No samples, an empty or too long one, or a token that the model does not have.
    """
    spec = loader.spec
    _check_samples(samples, spec)
    layouts = [BatchLayout((0,), (0,), (len(sample),), device.torch_device) for sample in samples]
    embedding = loader.load_embedding()
    states = [
        embedding.forward(torch.tensor(sample, device=device.torch_device), layout)
        for sample, layout in zip(samples, layouts, strict=True)
    ]
    del embedding
    cache = KvCache(
        num_layers=1,
        num_slots=1,
        num_kv_heads=spec.num_kv_heads,
        max_tokens=max(map(len, samples)),
        head_dim=spec.head_dim,
        dtype=device.compute_dtype,
        device=device.torch_device,
    )
    encoding = PositionEncoding(spec, device.torch_device, device.compute_dtype)
    positions = [encoding.at(layout) for layout in layouts]
    for index in range(spec.num_layers if end_layer is None else end_layer):
        source = loader.source.layer(index)
        layer = loader.build_layer(source, _EXACT)
        inputs = _record_inputs(layer, new_statistics)
        states = [layer.forward(state, at, cache.layers[0]) for state, at in zip(states, positions, strict=True)]
        yield CalibratedLayer(index, source, inputs)


class _RecordingLinear(QuantizedLinear):
    """A linear that shows its inputs to a collector."""

    def __init__(self, inner: QuantizedLinear, inputs: Statistics) -> None:
        super().__init__(torch.Size((inner.out_features, inner.in_features)), inner.bias)
        self._inner = inner
        self._inputs = inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See QuantizedLinear."""
        self._inputs.update(x)
        return self._inner.forward(x)

    def dequantized(self) -> torch.Tensor:
        """See QuantizedLinear."""
        return self._inner.dequantized()

    @property
    def weight_bytes(self) -> int:
        """See QuantizedLinear."""
        return self._inner.weight_bytes


def _record_inputs(layer: DecoderLayer, new_statistics: Callable[[], S]) -> dict[str, S]:
    """Makes a layer take statistics of what its linears read, by role."""
    inputs = {field.name: new_statistics() for field in fields(LayerLinears)}
    recording = {role: _RecordingLinear(getattr(layer.linears, role), inputs[role]) for role in inputs}
    layer.linears = replace(layer.linears, **recording)
    return inputs


def _check_samples(samples: tuple[tuple[int, ...], ...], spec: DecoderSpec) -> None:
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
