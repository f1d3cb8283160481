"""A model in this process whose layers can each be at any precision, and a text that it is tried on.

Its layers are the stage server's, rounded and multiplied as in a mesh: `llmpq eval ppl --precisions` gives the same
perplexity through one.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from llmpq.cli.eval_text import encoder, read_text
from llmpq.plan import LayerPrecision, Rounding
from llmpq.tokenizer import load_tokenizer
from stage_server.config import StageConfig
from stage_server.decoder_layer import DecoderLayer
from stage_server.device import open_device
from stage_server.layer_rounding import LayerRounder
from stage_server.loader import ModelLoader
from stage_server.logit_rows import logit_rows
from stage_server.sample_run import SampleRun, Samples, States


class MixedModel:
    """One model, its layers at whatever precisions are asked for, and the windows of a text.

    Args:
        model: As in ModelLoader.
        text: A file, as `llmpq eval ppl` reads it.
        window: Tokens of a window.
        group_size: Of schemes that have groups.
        rounding: Of the weights.
        samples: Calibration sequences, where the rounding needs them.
    """

    def __init__(
        self, model: str, text: Path, *, window: int, group_size: int, rounding: Rounding, samples: Samples
    ) -> None:
        self.device = open_device(StageConfig())
        self.loader = ModelLoader(model, self.device.torch_device, self.device.compute_dtype)
        self.num_layers = self.loader.spec.num_layers
        self._rounder = LayerRounder(self.loader, self.device, rounding, samples)
        self._group_size = group_size
        self._tokens = encoder(load_tokenizer(model))(read_text(text))
        self._window = window
        self._head = self.loader.load_head(None)
        self._layers: dict[str, list[DecoderLayer]] = {}

    def at(self, scheme: str) -> list[DecoderLayer]:
        """All layers at a scheme."""
        if scheme not in self._layers:
            precision = LayerPrecision(scheme, self._group_size)
            rounded = self._rounder.layers(dict.fromkeys(range(self.num_layers), precision))
            built = {layer.index: self.loader.build_layer(layer, precision) for layer in rounded}
            self._layers[scheme] = [built[index] for index in range(self.num_layers)]
        return self._layers[scheme]

    def run(self, num_tokens: int) -> SampleRun:
        """The first tokens of the text, in windows."""
        tokens = self._tokens[:num_tokens]
        windows = (tokens[first : first + self._window] for first in range(0, len(tokens), self._window))
        return SampleRun(self.loader, self.device, tuple(map(tuple, windows)))

    def mixed(self, schemes: Sequence[str]) -> list[DecoderLayer]:
        """Each layer at its scheme."""
        return [self.at(scheme)[layer] for layer, scheme in enumerate(schemes)]

    def perplexity(self, layers: Sequence[DecoderLayer], num_tokens: int) -> float:
        """Perplexity of the first tokens with these layers."""
        run = self.run(num_tokens)
        return math.exp(self.negative_log_likelihood(run, through_all(run, layers)))

    def negative_log_likelihood(self, run: SampleRun, states: States) -> float:
        """Mean over all tokens but the first of each window, in nats, from the states behind the last layer."""
        total, count = 0.0, 0
        for sample, state in zip(run.samples, states, strict=True):
            targets = torch.tensor(sample[1:], device=state.device)
            for rows in logit_rows(self._head, len(targets)):
                scores = torch.log_softmax(self._head.logits(state[:-1][rows]), dim=-1)
                total -= scores.gather(1, targets[rows, None]).double().sum().item()
            count += len(targets)
        return total / count

    def divergence(self, exact: States, states: States) -> float:
        """Mean KL divergence of predictions from the exact ones, nats a token, by states behind the last layer."""
        total = 0.0
        for reference, state in zip(exact, states, strict=True):
            for rows in logit_rows(self._head, len(state)):
                expected, found = (torch.log_softmax(self._head.logits(of[rows]), dim=-1) for of in (reference, state))
                total += (expected.exp() * (expected - found)).double().sum().item()
        return total / sum(map(len, states))


def through_all(run: SampleRun, layers: Sequence[DecoderLayer]) -> States:
    """What all layers make of a run."""
    states = run.embedded()
    for layer in layers:
        states = run.through(layer, states)
    return states


class LayerDamage:
    """What quantizing one layer alone does to a text.

    Args:
        model: Which one.
        num_tokens: How much of its text.
    """

    def __init__(self, model: MixedModel, num_tokens: int) -> None:
        self._model = model
        self._run = model.run(num_tokens)
        self._before: list[States] = []
        states = self._run.embedded()
        for exact in model.at("w16"):
            self._before.append(states)
            states = self._run.through(exact, states)
        self._exact = model.negative_log_likelihood(self._run, states)

    def of(self, layer: int, scheme: str) -> float:
        """By how much the mean negative log-likelihood rises, in nats a token; exact up to that layer, as it was."""
        states = self._run.through(self._model.at(scheme)[layer], self._before[layer])
        for exact in self._model.at("w16")[layer + 1 :]:
            states = self._run.through(exact, states)
        return self._model.negative_log_likelihood(self._run, states) - self._exact
