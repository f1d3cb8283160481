"""Ratings by the variance indicator: one run of the exact model over the samples."""

from collections.abc import Iterator

import torch

from llmpq.plan import LayerSensitivity
from llmpq.rating import RatingProgress, RatingRequest
from quantizer.variance import RatedLinear, RunningVariance, variance_omega
from stage_server.calibration import CalibratedLayer, calibrated_layers
from stage_server.device import ComputeDevice
from stage_server.families import DecoderSpec
from stage_server.loader import ModelLoader
from stage_server.operators import operator_sizes


def rate_by_variance(loader: ModelLoader, device: ComputeDevice, request: RatingRequest) -> Iterator[RatingProgress]:
    """See `rate_layers` and `quantizer.variance`; a step is a layer."""
    for layer in calibrated_layers(loader, device, request.token_ids, RunningVariance):
        operators = tuple(_operators(layer, loader.spec, device.torch_device))
        omegas = {
            scheme: variance_omega(operators, request.precision(scheme), request.rounding) for scheme in request.schemes
        }
        ratings = tuple(LayerSensitivity(layer.index, scheme, omega) for scheme, omega in omegas.items())
        yield RatingProgress(ratings, layer.index + 1, loader.spec.num_layers)


def _operators(
    layer: CalibratedLayer[RunningVariance], spec: DecoderSpec, device: torch.device
) -> Iterator[RatedLinear]:
    for role, linear in layer.source.linears.items():
        weight = linear.weight.to(device)
        for operator in weight.split_with_sizes(operator_sizes(spec, role, len(weight))):
            yield RatedLinear(operator, layer.inputs[role])
