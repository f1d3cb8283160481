"""Rates each layer of a model by the variance indicator, holding one layer in memory at a time."""

from collections.abc import Iterator

from llmpq.plan import LayerSensitivity
from quantizer.sensitivity import RatedLinear, RunningVariance, rate_layer
from stage_server.calibration import CalibratedLayer, calibrated_layers
from stage_server.device import ComputeDevice
from stage_server.families import DecoderSpec
from stage_server.loader import ModelLoader


def layer_sensitivities(
    loader: ModelLoader,
    device: ComputeDevice,
    schemes: tuple[str, ...],
    group_size: int,
    samples: tuple[tuple[int, ...], ...],
) -> Iterator[tuple[LayerSensitivity, ...]]:
    """Runs the samples through the model layer by layer; yields the ratings of each layer, not normalized.

    Args:
        loader: Of the model.
        device: Where to compute.
        schemes: What to rate.
        group_size: Of the schemes that have groups.
        samples: Token ids of calibration sequences, not longer than the model's context.

    Raises:
        InvalidInputError: As `calibrated_layers`.
    """
    for layer in calibrated_layers(loader, device, samples, RunningVariance):
        omegas = rate_layer(_operators(layer, loader.spec), schemes, group_size)
        yield tuple(LayerSensitivity(layer.index, scheme, omega) for scheme, omega in omegas.items())


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
