"""The Hessian indicator: what the model's loss rises by, to second order, when one layer is quantized as it is served.

Weights that are off by dW raise the loss by dW^T H dW / 2: the first order is none on average, if next tokens are drawn
from what the exact model predicts. H is then the Fisher information E[g g^T] of the gradients g of -log p(token)
(Martens, arXiv 1412.1193), so that

    omega = sum over operators of E[(g . dW)^2] / 2    in nats a token,

taken over the samples, with one drawn token at each position. g . dW is summed up as (gradient of an operator's output)
. (error of that output), which needs no gradient of weights and holds for rounded activations too. Operators count by
themselves: what errors of two of them have in common is small, and all noise with few samples.

trace(dW H dW^T) with H = E[x x^T], the squared error of the outputs alone, does not say how much outputs matter: where
a few activations are huge it ranks layers as badly as the variance indicator (docs/quantization.md has figures). The
authors' Hessian indicator multiplies a layer's error by the largest eigenvalue of its Hessian, found by power iteration
for hours; here one backward pass is enough, because only the direction dW is asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields

import torch

from llmpq.plan import LayerSensitivity
from llmpq.rating import RatingProgress, RatingRequest
from quantizer.quantized_linear import QuantizedLinear
from stage_server.backward_run import BackwardRun, LayerBack
from stage_server.decoder_layer import LayerLinears
from stage_server.device import ComputeDevice
from stage_server.gradients import OnGradient
from stage_server.loader import ModelLoader
from stage_server.operators import operator_sizes
from stage_server.sensitivity.served import calibrating, num_samples_within, served_layers

#: Tokens that are run, unless all samples must be for the sake of rounding: with twice as many layers are ranked hardly
#: better (docs/quantization.md).
_MAX_TOKENS = 2048


def rate_by_hessian(loader: ModelLoader, device: ComputeDevice, request: RatingRequest) -> Iterator[RatingProgress]:
    """See `rate_layers`; a step is a layer on the way forth, which rates nothing, or back."""
    num_layers, samples = loader.spec.num_layers, request.token_ids
    if not request.rounding.needs_calibration:
        samples = samples[: num_samples_within(samples, _MAX_TOKENS)]
    run = BackwardRun(loader, device, samples)
    for index in run.forth():
        yield RatingProgress((), index + 1, 2 * num_layers)
    for layer in run.back():
        index = layer.source.index
        omegas = _omegas(loader, layer, request)
        ratings = tuple(LayerSensitivity(index, scheme, omega) for scheme, omega in omegas.items())
        yield RatingProgress(ratings, 2 * num_layers - index, 2 * num_layers)


def _omegas(loader: ModelLoader, layer: LayerBack, request: RatingRequest) -> dict[str, float]:
    """The omega of each scheme in a layer."""
    with calibrating(layer.layer, request.rounding) as inputs:
        if inputs:
            layer.read()
    served = dict(served_layers(loader, layer.source.as_floats(), request, inputs))
    linears = {scheme: other.linears for scheme, other in served.items()}
    squares = dict.fromkeys(request.schemes, 0.0)
    observers = {}
    for field in fields(LayerLinears):
        exact: QuantizedLinear = getattr(layer.layer.linears, field.name)
        sizes = operator_sizes(loader.spec, field.name, exact.out_features)
        observers[field.name] = _observer(field.name, sizes, linears, squares)
    layer.through(observers)
    num_tokens = sum(map(len, layer.states))
    return {scheme: square / 2 / num_tokens for scheme, square in squares.items()}


def _observer(
    role: str, sizes: tuple[int, ...], served: Mapping[str, LayerLinears], squares: dict[str, float]
) -> OnGradient:
    """Adds up what the errors of a linear come to.

    Args:
        role: Of the linear.
        sizes: Outputs of each of its operators.
        served: The layer's linears as they are served at each scheme.
        squares: By scheme; gets (g . dW)^2 of each operator and sample added.
    """

    def on_gradient(x: torch.Tensor, y: torch.Tensor, gradient: torch.Tensor) -> None:
        for scheme, linears in served.items():
            error = getattr(linears, role).forward(x).float() - y
            by_output = error.mul_(gradient).sum(dim=0).double()
            squares[scheme] += sum(part.sum().item() ** 2 for part in by_output.split_with_sizes(sizes))

    return on_gradient
