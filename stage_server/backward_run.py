"""Samples on their way through the exact model, and gradients of the loss on their way back, a layer at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import torch

from quantizer.methods import to_sixteen_bits
from stage_server.decoder_layer import DecoderLayer, LayerLinears
from stage_server.device import ComputeDevice
from stage_server.gradients import DifferentiableLinear, OnGradient, loss_gradients
from stage_server.loader import ModelLoader
from stage_server.read_ahead import ReadAhead
from stage_server.sample_run import EXACT, SampleRun, Samples, States
from stage_server.source import SourceLayer

#: Of the draws of next tokens: the same model and samples always give the same gradients.
_SEED = 0


class BackwardRun:
    """The loss is -log p(token) of tokens that are drawn from what the exact model itself predicts, a token a position.

    So the mean of squared gradients is the Fisher information: to second order, what an error costs (Martens, arXiv
    1412.1193). The device holds one layer, and what one sample needs in it. What each layer reads waits on the host, in
    16 bits: layers * tokens * hidden elements.

    Args:
        loader: Of the model.
        device: Where to compute.
        samples: Token ids of sequences.
        first_layer: Where gradients stop.

    Raises:
        InvalidInputError: As SampleRun.
    """

    def __init__(self, loader: ModelLoader, device: ComputeDevice, samples: Samples, first_layer: int = 0) -> None:
        self._loader = loader
        self._first_layer = first_layer
        self._device = device.torch_device
        self._run = SampleRun(loader, device, samples)
        self._kept: list[States] = []
        self._gradients: States = []

    def forth(self) -> Iterator[int]:
        """Takes the samples through all layers; yields the index of each behind it."""
        loader = self._loader
        indices = range(loader.spec.num_layers)
        loader.source.expect(indices, embedding=True, head=True)
        states = [state.cpu() for state in self._run.embedded()]
        with ReadAhead(map(loader.source.layer, indices)) as sources:
            for source in sources:
                if source.index >= self._first_layer:
                    self._kept.append([to_sixteen_bits(state) for state in states])
                layer = loader.build_layer(source.as_floats(), EXACT)
                for sample, state in enumerate(states):
                    states[sample] = self._run.through_sample(layer, sample, state.to(self._device)).cpu()
                yield source.index
        generator = torch.Generator(self._device).manual_seed(_SEED)
        after = (state.to(self._device) for state in states)
        self._gradients = [gradient.cpu() for gradient in loss_gradients(loader.load_head(None), after, generator)]

    def back(self) -> Iterator["LayerBack"]:
        """The layers from the last one back, after `forth`; each must be taken `through` before the next."""
        indices = reversed(range(self._first_layer, self._loader.spec.num_layers))
        with ReadAhead(map(self._loader.source.layer, indices)) as sources:
            for source in sources:
                layer = self._loader.build_layer(source.as_floats(), EXACT)
                yield LayerBack(source, layer, self._kept.pop(), self._gradients, self._run, self._device)


@dataclass(frozen=True)
class LayerBack:
    """A layer that gradients have come to.

    Attributes:
        source: As its source gives it.
        layer: The exact one.
        states: What it reads, on the host.
        gradients: Of the loss by what it makes of each sample, on the host; by what it reads, after `through`.
    """

    source: SourceLayer
    layer: DecoderLayer
    states: States
    gradients: States
    run: SampleRun
    device: torch.device

    def read(self) -> None:
        """Runs the layer on what it reads, for the sake of what its linears see."""
        for sample, state in enumerate(self.states):
            self.run.through_sample(self.layer, sample, state.to(self.device, self.gradients[sample].dtype))

    def through(self, observers: Mapping[str, OnGradient]) -> None:
        """Takes gradients through the layer; observers, by role of linear, are called for each sample."""
        linears = self.layer.linears
        roles = [field.name for field in fields(linears)]
        self.layer.linears = LayerLinears(
            **{role: DifferentiableLinear(getattr(linears, role), observers.get(role)) for role in roles}
        )
        for sample, (state, gradient) in enumerate(zip(self.states, self.gradients, strict=True)):
            leaf = state.to(self.device, gradient.dtype).requires_grad_()
            with torch.enable_grad():
                after = self.run.through_sample(self.layer, sample, leaf)
            (before,) = torch.autograd.grad(after, leaf, gradient.to(self.device))
            self.gradients[sample] = before.cpu()
        self.layer.linears = linears
