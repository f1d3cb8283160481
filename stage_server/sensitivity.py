"""Rates each layer of a model by the variance indicator, holding one layer in memory at a time."""

from collections.abc import Iterator
from dataclasses import fields, replace

import torch

from llmpq.errors import InvalidInputError
from llmpq.plan import LayerPrecision, LayerSensitivity
from quantizer.linear import QuantizedLinear
from quantizer.sensitivity import RatedLinear, RunningVariance, rate_layer
from stage_server.decoder_layer import DecoderLayer, LayerLinears
from stage_server.device import ComputeDevice
from stage_server.families import DecoderSpec
from stage_server.kv_cache import KvCache
from stage_server.layout import BatchLayout
from stage_server.loader import ModelLoader, SourceLayer
from stage_server.model_slice import rotary_of

_EXACT = LayerPrecision("w16")


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
        InvalidInputError: No samples, an empty or too long one, or a token that the model does not have.
    """
    spec = loader.spec
    _check_samples(samples, spec)
    layouts = [BatchLayout((0,), (0,), (len(sample),), device.torch_device) for sample in samples]
    embedding = loader.load_embedding()
    states = [
        embedding.forward(torch.tensor(sample, device=device.torch_device), layout)
        for sample, layout in zip(samples, layouts, strict=True)
    ]
    del embedding
    cache = KvCache(
        num_layers=1,
        num_slots=1,
        num_kv_heads=spec.num_kv_heads,
        max_tokens=max(map(len, samples)),
        head_dim=spec.head_dim,
        dtype=device.compute_dtype,
        device=device.torch_device,
    )
    rotary = rotary_of(spec, device.torch_device)
    tables = [rotary.table(layout.positions) if rotary is not None else None for layout in layouts]
    for index in range(spec.num_layers):
        source = loader.read_layer(index)
        layer = loader.build_layer(source, _EXACT)
        inputs = _record_inputs(layer)
        states = [
            layer.forward(state, layout, cache.layers[0], table)
            for state, layout, table in zip(states, layouts, tables, strict=True)
        ]
        omegas = rate_layer(_operators(source, inputs, spec), schemes, group_size)
        yield tuple(LayerSensitivity(index, scheme, omega) for scheme, omega in omegas.items())


class _RecordingLinear(QuantizedLinear):
    """A linear that takes statistics of its inputs."""

    def __init__(self, inner: QuantizedLinear) -> None:
        super().__init__(torch.Size((inner.out_features, inner.in_features)), inner.bias)
        self._inner = inner
        self.inputs = RunningVariance()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See QuantizedLinear."""
        self.inputs.update(x)
        return self._inner.forward(x)

    def dequantized(self) -> torch.Tensor:
        """See QuantizedLinear."""
        return self._inner.dequantized()

    @property
    def weight_bytes(self) -> int:
        """See QuantizedLinear."""
        return self._inner.weight_bytes


def _record_inputs(layer: DecoderLayer) -> dict[str, RunningVariance]:
    """Makes a layer take statistics of what its linears read, by role."""
    recording = {field.name: _RecordingLinear(getattr(layer.linears, field.name)) for field in fields(LayerLinears)}
    layer.linears = replace(layer.linears, **recording)
    return {role: linear.inputs for role, linear in recording.items()}


def _operators(source: SourceLayer, inputs: dict[str, RunningVariance], spec: DecoderSpec) -> Iterator[RatedLinear]:
    """The layer's operators as the paper counts them: matrices that are stacked here stand on their own."""
    sizes = {
        "qkv": spec.qkv_sizes,
        "ffn_in": (len(source.linears["ffn_in"].weight) // (2 if spec.is_gated else 1),) * (2 if spec.is_gated else 1),
    }
    for role, linear in source.linears.items():
        for weight in linear.weight.split_with_sizes(sizes.get(role, (len(linear.weight),))):
            yield RatedLinear(weight, inputs[role])


def _check_samples(samples: tuple[tuple[int, ...], ...], spec: DecoderSpec) -> None:
    if not samples or not all(samples):
        raise InvalidInputError("Calibration needs at least one sample, and none may be empty.", subject="samples")
    if max(map(len, samples)) > spec.max_positions:
        raise InvalidInputError(
            f"A calibration sample is longer than the model's context of {spec.max_positions} tokens.",
            subject="samples",
        )
    if max(map(max, samples)) >= spec.vocab_size:
        raise InvalidInputError(
            f"A calibration token is not below the vocabulary size {spec.vocab_size}.",
            subject="samples",
        )
