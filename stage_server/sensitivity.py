"""Rates each layer of a model by the indicator that is asked for, holding one layer in memory at a time."""

from collections.abc import Iterator

from llmpq.plan import LayerSensitivity
from llmpq.rating import RatingProgress, RatingRequest
from quantizer.sensitivity import RatedLinear, RunningVariance, rate_layer
from stage_server.calibration import CalibratedLayer, calibrated_layers
from stage_server.device import ComputeDevice
from stage_server.families import DecoderSpec
from stage_server.loader import ModelLoader


def rate_layers(loader: ModelLoader, device: ComputeDevice, request: RatingRequest) -> Iterator[RatingProgress]:
    """Runs the samples through the model; yields how far it is, with each layer's ratings once they are known.

    Args:
        loader: Of the model.
        device: Where to compute.
        request: What to rate, and how.

    Raises:
        InvalidInputError: As `calibrated_layers`.
    """
    samples = tuple(sample.token_ids for sample in request.samples)
    num_layers = loader.spec.num_layers
    for layer in calibrated_layers(loader, device, samples, RunningVariance):
        omegas = rate_layer(_operators(layer, loader.spec), request.schemes, request.group_size)
        ratings = tuple(LayerSensitivity(layer.index, scheme, omega) for scheme, omega in omegas.items())
        yield RatingProgress(ratings, layer.index + 1, num_layers)


def _operators(layer: CalibratedLayer[RunningVariance], spec: DecoderSpec) -> Iterator[RatedLinear]:
    """The layer's operators as the paper counts them: matrices that are stacked here stand on their own."""
    linears = layer.source.linears
    num_inputs_of_ffn = 2 if spec.is_gated else 1
    sizes = {
        "qkv": spec.qkv_sizes,
        "ffn_in": (len(linears["ffn_in"].weight) // num_inputs_of_ffn,) * num_inputs_of_ffn,
    }
    for role, linear in linears.items():
        for weight in linear.weight.split_with_sizes(sizes.get(role, (len(linear.weight),))):
            yield RatedLinear(weight, layer.inputs[role])
