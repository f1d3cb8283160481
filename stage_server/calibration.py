"""What the linears of each layer read while calibration samples run through the exact model, a layer at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Generic, Protocol, TypeVar

import torch

from llmpq.plan import LayerPrecision
from quantizer.linear import QuantizedLinear
from stage_server.decoder_layer import DecoderLayer, LayerLinears
from stage_server.device import ComputeDevice
from stage_server.loader import ModelLoader
from stage_server.sample_run import SampleRun, Samples
from stage_server.source import SourceLayer

#: What the exact model is stored at.
EXACT = LayerPrecision("w16")


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
    samples: Samples,
    new_statistics: Callable[[], S],
    end_layer: int | None = None,
) -> Iterator[CalibratedLayer[S]]:
    """Runs the samples through the exact model, layer by layer from the first on; holds one layer at a time.

    Because the inputs are those of the exact model, what is made of a layer depends neither on the stage that it is on
    nor on the precision of the layers before it.

    Args:
        loader: Of the model.
        device: Where to compute.
        samples: Calibration sequences.
        new_statistics: Makes the collector of one linear.
        end_layer: One past the last layer wanted; None is all layers.

    Raises:
        InvalidInputError: As SampleRun.
    """
    run = SampleRun(loader, device, samples)
    states = run.embedded()
    for index in range(loader.spec.num_layers if end_layer is None else end_layer):
        source = loader.source.layer(index)
        layer = loader.build_layer(source, EXACT)
        with recorded_inputs(layer, new_statistics) as inputs:
            states = run.through(layer, states)
        yield CalibratedLayer(index, source, inputs)


@contextmanager
def recorded_inputs(layer: DecoderLayer, new_statistics: Callable[[], S]) -> Iterator[dict[str, S]]:
    """Takes statistics of what the linears of a layer read inside the block; yields them, by role."""
    linears = layer.linears
    inputs = {field.name: new_statistics() for field in fields(LayerLinears)}
    layer.linears = replace(
        linears, **{role: _RecordingLinear(getattr(linears, role), inputs[role]) for role in inputs}
    )
    try:
        yield inputs
    finally:
        layer.linears = linears


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
