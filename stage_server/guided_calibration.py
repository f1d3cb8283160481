"""What the linears of each layer read in calibration samples, each token counting by what it means for the loss."""

from collections.abc import Collection, Iterator

import torch

from quantizer.input_statistics import InputStatistics
from stage_server.backward_run import BackwardRun, LayerBack
from stage_server.calibration import CalibratedLayer
from stage_server.device import ComputeDevice
from stage_server.families import DecoderSpec
from stage_server.gradients import OnGradient
from stage_server.loader import ModelLoader
from stage_server.operators import operator_sizes
from stage_server.sample_run import Samples


def guided_layers(
    loader: ModelLoader, device: ComputeDevice, samples: Samples, wanted: Collection[int]
) -> Iterator[CalibratedLayer[InputStatistics]]:
    """Runs the samples through the exact model and the loss back, and yields the layers wanted, the last one first.

    The weight of a token in an operator is the mean squared gradient of the loss by the operator's outputs there. As
    the whole run is that of the exact model, what is made of a layer depends neither on the stage that it is on nor on
    the precision of other layers.

    Args:
        loader: Of the model.
        device: Where to compute.
        samples: Calibration sequences.
        wanted: Indices of layers.

    Raises:
        InvalidInputError: As SampleRun.
    """
    num_layers = loader.spec.num_layers
    run = BackwardRun(loader, device, samples, min(wanted))
    for index in run.forth():
        loader.report(f"Calibrating: layer {index + 1} of {num_layers} on the way forth.")
    for layer in run.back():
        loader.report(f"Calibrating: layer {layer.source.index + 1} on the way back.")
        inputs = _statistics(layer, loader.spec) if layer.source.index in wanted else {}
        layer.through({role: _observer(statistics) for role, statistics in inputs.items()})
        if inputs:
            yield CalibratedLayer(layer.source.index, layer.source, inputs)


def _statistics(layer: LayerBack, spec: DecoderSpec) -> dict[str, InputStatistics]:
    linears = vars(layer.layer.linears)
    return {role: InputStatistics(operator_sizes(spec, role, linear.out_features)) for role, linear in linears.items()}


def _observer(inputs: InputStatistics) -> OnGradient:
    def on_gradient(x: torch.Tensor, _: torch.Tensor, gradient: torch.Tensor) -> None:
        parts = gradient.float().split_with_sizes(inputs.sizes or (gradient.shape[1],), dim=1)
        inputs.update(x, torch.stack([part.square().mean(dim=1) for part in parts]))

    return on_gradient
