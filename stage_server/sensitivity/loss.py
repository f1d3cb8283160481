"""The measured indicator: what the model's predictions lose when one layer alone is quantized, as it is served.

A layer's loss is the mean over calibration tokens of KL(p || q), where p is what the exact model predicts and q what it
predicts with that layer quantized. It is the increase of the negative log-likelihood, expected over next tokens that p
draws instead of taken at the one that the text happens to have: never negative, and far less noisy, so that few samples
are enough.

A variant, which is one layer at one scheme, leaves the exact run at its layer and goes the rest of the way by itself:
schemes * layers^2 / 2 layers are run in all, and a head for each variant.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import kl_div

from llmpq.plan import LayerSensitivity
from llmpq.rating import RatingProgress, RatingRequest
from stage_server.device import ComputeDevice
from stage_server.ends import Head
from stage_server.loader import ModelLoader
from stage_server.logit_rows import logit_rows
from stage_server.sample_run import EXACT, SampleRun, States
from stage_server.sensitivity.served import calibrating, num_samples_within, served_layers

#: Share of the device's budget for the hidden states of variants. What does not fit is left to another pass.
_STATES_SHARE = 0.25
#: Tokens on which losses are measured: noise is small already.
_MAX_TOKENS = 1024


@dataclass(frozen=True)
class Variant:
    """The exact model but for one layer."""

    layer: int
    scheme: str


def rate_by_loss(loader: ModelLoader, device: ComputeDevice, request: RatingRequest) -> Iterator[RatingProgress]:
    """See `rate_layers`; a step is a layer, through which all variants go that left the exact run before it.

    Losses are measured on the first samples, `_MAX_TOKENS` in all; roundings are calibrated by all samples. Hidden
    states of variants take a quarter of the device's budget at most, unless those of one layer take more: where they do
    not all fit, they go in several passes, each from the first layer whose variants the pass before left out.
    """
    meter = _LossMeter(loader, device, request)
    num_layers = loader.spec.num_layers
    states = meter.embedded()
    passes = _passes(
        num_layers, int(_STATES_SHARE * device.description.memory_budget_bytes) // meter.layer_bytes(states)
    )
    num_steps, num_done = sum(num_layers - layers.start for layers in passes), 0
    for layers in passes:
        exact, variants = states, dict[Variant, States]()
        for index in range(layers.start, num_layers):
            exact = meter.step(index, exact, variants, is_leaving=index in layers)
            states = exact if index in layers else states
            num_done += 1
            if index < num_layers - 1:
                yield RatingProgress((), num_done, num_steps)
        yield RatingProgress(meter.ratings(layers, exact, variants), num_done, num_steps)


class _LossMeter:
    """Takes variants through layers, and compares them at the end."""

    def __init__(self, loader: ModelLoader, device: ComputeDevice, request: RatingRequest) -> None:
        self._loader = loader
        self._request = request
        samples = request.token_ids
        self._num_rated = num_samples_within(samples, _MAX_TOKENS)
        needed = samples if request.rounding.needs_calibration else samples[: self._num_rated]
        self._run = SampleRun(loader, device, needed)

    def embedded(self) -> States:
        """What the first layer reads."""
        return self._run.embedded()

    def layer_bytes(self, states: States) -> int:
        """Bytes that the variants of one layer take, given some layer's states."""
        return len(self._request.schemes) * sum(state.nbytes for state in states[: self._num_rated])

    def step(self, index: int, exact: States, variants: dict[Variant, States], *, is_leaving: bool) -> States:
        """Takes the exact run and all variants through a layer; returns the states of the exact run behind it.

        Args:
            index: The layer.
            exact: What it reads in the exact run.
            variants: What it reads in each variant; replaced by what it makes of that.
            is_leaving: Whether its own variants are added.
        """
        source = self._loader.source.layer(index).as_floats()
        layer = self._loader.build_layer(source, EXACT)
        for variant, states in variants.items():
            variants[variant] = self._run.through(layer, states)
        with calibrating(layer, self._request.rounding) as inputs:
            after = self._run.through(layer, exact)
        if is_leaving:
            for scheme, served in served_layers(self._loader, source, self._request, inputs):
                variants[Variant(index, scheme)] = self._run.through(served, exact[: self._num_rated])
        return after

    def ratings(self, layers: range, exact: States, variants: Mapping[Variant, States]) -> tuple[LayerSensitivity, ...]:
        """The losses of layers at all schemes, from the states of all their variants behind the last layer."""
        losses = _divergences(self._loader.load_head(None), exact[: self._num_rated], variants)
        return tuple(
            LayerSensitivity(layer, scheme, losses.get(Variant(layer, scheme), 0.0))
            for layer in layers
            for scheme in self._request.schemes
        )


def _passes(num_layers: int, layers_per_pass: int) -> list[range]:
    """All layers, in runs of at most so many; at least one."""
    size = max(1, layers_per_pass)
    return [range(first, min(first + size, num_layers)) for first in range(0, num_layers, size)]


def _divergences(head: Head, exact: States, variants: Mapping[Variant, States]) -> dict[Variant, float]:
    """Mean KL(exact || variant) of what the head makes of the last hidden states, for each variant, in nats a token."""
    sums = dict.fromkeys(variants, 0.0)
    for sample, states in enumerate(exact):
        for rows in logit_rows(head, len(states)):
            expected = torch.log_softmax(head.logits(states[rows]), dim=-1)
            for variant, others in variants.items():
                predicted = torch.log_softmax(head.logits(others[sample][rows]), dim=-1)
                sums[variant] += kl_div(predicted, expected, reduction="sum", log_target=True).item()
    num_tokens = sum(map(len, exact))
    return {variant: max(0.0, total / num_tokens) for variant, total in sums.items()}
