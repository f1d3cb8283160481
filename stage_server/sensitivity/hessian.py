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
from stage_server.calibration import EXACT
from stage_server.decoder_layer import DecoderLayer, LayerLinears
from stage_server.device import ComputeDevice
from stage_server.families import DecoderSpec
from stage_server.loader import ModelLoader
from stage_server.sample_run import SampleRun, States
from stage_server.sensitivity.gradients import DifferentiableLinear, loss_gradients
from stage_server.sensitivity.operators import operator_sizes
from stage_server.sensitivity.served import calibrating, served_layers

#: Of the draws of next tokens: the same model and samples always give the same ratings.
_SEED = 0


def rate_by_hessian(loader: ModelLoader, device: ComputeDevice, request: RatingRequest) -> Iterator[RatingProgress]:
    """See `rate_layers`; a step is a layer on the way forth, which rates nothing, or back.

    Keeps the hidden states before every layer on the host: layers * tokens * hidden elements.
    """
    num_layers = loader.spec.num_layers
    run = SampleRun(loader, device, request.token_ids)
    kept: list[States] = []
    states = run.embedded()
    for index in range(num_layers):
        kept.append([state.cpu() for state in states])
        states = run.through(loader.build_layer(loader.source.layer(index).as_floats(), EXACT), states)
        yield RatingProgress((), index + 1, 2 * num_layers)
    generator = torch.Generator(device.torch_device).manual_seed(_SEED)
    head = loader.load_head(None)
    gradients = [loss_gradients(head, state, generator) for state in states]
    del head
    meter = _LayerMeter(loader, run, request)
    for index in reversed(range(num_layers)):
        states = [state.to(device.torch_device) for state in kept.pop()]
        omegas, gradients = meter.rate(index, states, gradients)
        ratings = tuple(LayerSensitivity(index, scheme, omega) for scheme, omega in omegas.items())
        yield RatingProgress(ratings, 2 * num_layers - index, 2 * num_layers)


class _LayerMeter:
    """Rates one layer after the other, from the last to the first."""

    def __init__(self, loader: ModelLoader, run: SampleRun, request: RatingRequest) -> None:
        self._loader = loader
        self._run = run
        self._request = request

    def rate(self, index: int, states: States, gradients: States) -> tuple[dict[str, float], States]:
        """The omega of each scheme in a layer, and the gradients by its inputs.

        Args:
            index: The layer.
            states: What it reads.
            gradients: Of the loss by what it makes of them.
        """
        source = self._loader.source.layer(index).as_floats()
        layer = self._loader.build_layer(source, EXACT)
        with calibrating(layer, self._request.rounding) as inputs:
            if inputs:
                self._run.through(layer, states)
        served = dict(served_layers(self._loader, source, self._request, inputs))
        squares = dict.fromkeys(self._request.schemes, 0.0)
        _observe(layer, {scheme: other.linears for scheme, other in served.items()}, squares, self._loader.spec)
        before = [
            self._back(layer, sample, state, gradient)
            for sample, (state, gradient) in enumerate(zip(states, gradients, strict=True))
        ]
        num_tokens = sum(map(len, states))
        return {scheme: square / 2 / num_tokens for scheme, square in squares.items()}, before

    def _back(self, layer: DecoderLayer, sample: int, state: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        leaf = state.detach().requires_grad_()
        with torch.enable_grad():
            after = self._run.through_sample(layer, sample, leaf)
        (before,) = torch.autograd.grad(after, leaf, gradient)
        return before


def _observe(
    layer: DecoderLayer, served: Mapping[str, LayerLinears], squares: dict[str, float], spec: DecoderSpec
) -> None:
    """Makes a layer add up, while gradients flow back through it, what errors of its linears come to.

    Args:
        layer: The exact one.
        served: Its linears as they are served at each scheme.
        squares: By scheme; gets (g . dW)^2 of each operator and sample added.
        spec: Of the model.
    """

    def observed(role: str) -> DifferentiableLinear:
        exact: QuantizedLinear = getattr(layer.linears, role)
        sizes = operator_sizes(spec, role, exact.out_features)

        def on_gradient(x: torch.Tensor, y: torch.Tensor, gradient: torch.Tensor) -> None:
            for scheme, linears in served.items():
                error = getattr(linears, role).forward(x).float() - y
                by_output = (gradient * error).double().sum(dim=0)
                squares[scheme] += sum(part.sum().item() ** 2 for part in by_output.split_with_sizes(sizes))

        return DifferentiableLinear(exact, on_gradient)

    layer.linears = LayerLinears(**{field.name: observed(field.name) for field in fields(LayerLinears)})
