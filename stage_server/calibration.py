"""What the linears of each layer read while calibration samples run through the exact model, a layer at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Generic, Protocol, TypeVar

import torch

from quantizer.linear import QuantizedLinear
from stage_server.decoder_layer import DecoderLayer, LayerLinears
from stage_server.device import ComputeDevice
from stage_server.loader import ModelLoader
from stage_server.read_ahead import ReadAhead
from stage_server.sample_run import EXACT, SampleRun, Samples
from stage_server.source import SourceLayer


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
) -> Iterator[CalibratedLayer[S]]:
    """Runs the samples through the exact model, layer by layer from the first on, and yields each.

    Because the inputs are those of the exact model, what is made of a layer depends neither on the stage that it is on
    nor on the precision of the layers before it. The device holds one layer, and the states of one sample: those of
    the others wait in the memory of the host, where the next layer is read meanwhile.

    Args:
        loader: Of the model.
        device: Where to compute.
        samples: Calibration sequences.
        new_statistics: Makes the collector of one linear.

    Raises:
        InvalidInputError: As SampleRun.
    """
    indices = range(loader.spec.num_layers)
    run = SampleRun(loader, device, samples)
    loader.source.expect(indices, embedding=True)
    states = [state.cpu() for state in run.embedded()]
    with ReadAhead(map(loader.source.layer, indices)) as sources:
        for source in sources:
            loader.report(f"Calibrating layer {source.index + 1} of {len(indices)}.")
            layer = loader.build_layer(source.as_floats(), EXACT)
            with recorded_inputs(layer, new_statistics) as inputs:
                for sample, state in enumerate(states):
                    states[sample] = run.through_sample(layer, sample, state.to(device.torch_device)).cpu()
            yield CalibratedLayer(source.index, source, inputs)


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
