"""Builds a stage's slice of a model from its checkpoint: one layer at a time, quantized on the way to the device."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from llmpq.errors import InvalidInputError
from llmpq.model import read_config, shape_of
from llmpq.plan import LayerPrecision
from quantizer.linear import QuantizedLinear, quantize_linear, to_sixteen_bits
from stage_server import families
from stage_server.checkpoint import Checkpoint, open_checkpoint
from stage_server.decoder_layer import DecoderLayer, LayerLinears, Norm
from stage_server.ends import Embedding, Head
from stage_server.families import DecoderSpec

_HEAD_PRECISION = LayerPrecision("w16")


@dataclass(frozen=True)
class SourceLinear:
    """A weight matrix as the checkpoint has it: (out, in), and its bias (out,) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class SourceLayer:
    """One decoder layer in the checkpoint's own precision, on the CPU; linears stacked as in LayerLinears."""

    attention_norm: Norm
    ffn_norm: Norm
    linears: dict[str, SourceLinear]


class ModelLoader:
    """Reads parts of one model onto one device.

    Args:
        model: A directory or a .gguf file.
        device: Where the parts are to live.
        compute_dtype: Type of activations.

    Raises:
        NotFoundError: No such model, or its weights are missing.
        InvalidInputError: A family or variant that is not known.
    """

    def __init__(self, model: str, device: torch.device, compute_dtype: torch.dtype) -> None:
        self.model = model
        config = read_config(model)
        self.spec: DecoderSpec = families.describe(config)
        self._shape = shape_of(config)
        self._checkpoint: Checkpoint = open_checkpoint(model)
        self._device = device
        self._dtype = compute_dtype

    def read_layer(self, index: int) -> SourceLayer:
        """Reads one layer's tensors.

        Raises:
            NotFoundError: A tensor is missing; names it.
            InvalidInputError: A tensor is not of the shape that the configuration says, or not finite; names it.
        """
        names = self.spec.names
        roles = {
            "qkv": names.qkv,
            "attention_out": (names.attention_out,),
            "ffn_in": names.ffn_in,
            "ffn_out": (names.ffn_out,),
        }
        shapes = iter(self._shape.linear_shapes)
        return SourceLayer(
            attention_norm=self._read_norm(names.attention_norm.format(index)),
            ffn_norm=self._read_norm(names.ffn_norm.format(index)),
            linears={
                role: self._read_stacked(
                    {name.format(index): next(shapes) for name in members},
                    has_bias=role in self.spec.biased,
                )
                for role, members in roles.items()
            },
        )

    def build_layer(self, source: SourceLayer, precision: LayerPrecision) -> DecoderLayer:
        """Quantizes a layer onto the device; raises InvalidInputError for an unknown scheme or group size."""
        linears = {role: self._quantize(linear, precision) for role, linear in source.linears.items()}
        return DecoderLayer(self.spec, source.attention_norm, source.ffn_norm, LayerLinears(**linears))

    def load_layers(self, first: int, precisions: tuple[LayerPrecision, ...]) -> Iterator[DecoderLayer]:
        """Loads consecutive layers, one at a time."""
        for offset, precision in enumerate(precisions):
            yield self.build_layer(self.read_layer(first + offset), precision)

    def load_embedding(self) -> Embedding:
        """Loads the embedding in 16 bits."""
        names, shape = self.spec.names, self._shape
        positions = None
        if names.position_embedding:
            positions = self._read(names.position_embedding, shape.learned_positions, shape.hidden_size)
        return Embedding(
            tokens=self._to_device_16(self._read(names.token_embedding, shape.vocab_size, shape.hidden_size)),
            positions=self._to_device_16(positions) if positions is not None else None,
            position_offset=self.spec.position_offset,
            compute_dtype=self._dtype,
        )

    def load_head(self, embedding: Embedding | None) -> Head:
        """Loads final norm and head in 16 bits; a tied head uses the embedding's memory where the stage has both."""
        names = self.spec.names
        norm = self._read_norm(names.final_norm) if names.final_norm else None
        head = f"{names.head}.weight"
        is_tied = self.spec.is_tied or not self._checkpoint.has(head)
        if is_tied and embedding is not None:
            weight = embedding.tokens
        else:
            name = names.token_embedding if is_tied else head
            weight = self._read(name, self._shape.vocab_size, self._shape.hidden_size)
        projection = self._quantize(SourceLinear(weight, None), _HEAD_PRECISION)
        return Head(norm, projection, is_shared=is_tied and embedding is not None)

    def _quantize(self, linear: SourceLinear, precision: LayerPrecision) -> QuantizedLinear:
        return quantize_linear(
            linear.weight,
            linear.bias,
            precision,
            device=self._device,
            compute_dtype=self._dtype,
        )

    def _read(self, name: str, *dimensions: int) -> torch.Tensor:
        """A tensor of the checkpoint, of these dimensions."""
        tensor = self._checkpoint.tensor(name)
        if tensor.shape != dimensions or not tensor.is_floating_point():
            found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise _wrong(name, f"is {found}, but the configuration says floats of shape {dimensions}")
        if not tensor.isfinite().all():
            raise _wrong(name, "holds NaN or infinity: the checkpoint is damaged")
        return tensor

    def _read_stacked(self, shapes: dict[str, tuple[int, int]], *, has_bias: bool) -> SourceLinear:
        """The weights of these shapes, by module, and their biases, stacked along the output axis."""
        weights = [self._read(f"{module}.weight", *shape) for module, shape in shapes.items()]
        biases = [self._read(f"{module}.bias", out) for module, (out, _) in shapes.items()] if has_bias else []
        return SourceLinear(torch.cat(weights), torch.cat(biases) if biases else None)

    def _read_norm(self, module: str) -> Norm:
        weight = self._read(f"{module}.weight", self._shape.hidden_size)
        bias = self._read(f"{module}.bias", self._shape.hidden_size) if self._checkpoint.has(f"{module}.bias") else None
        return Norm(
            kind=self.spec.norm_kind,
            weight=self._to_compute(weight),
            bias=self._to_compute(bias) if bias is not None else None,
            eps=self.spec.norm_eps,
        )

    def _to_compute(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, self._dtype)

    def _to_device_16(self, tensor: torch.Tensor) -> torch.Tensor:
        """16-bit copy; float32 becomes float16 unless it overflows, as in the w16 scheme."""
        return to_sixteen_bits(tensor).to(self._device)


def _wrong(name: str, problem: str) -> InvalidInputError:
    return InvalidInputError(f"Tensor '{name}' {problem}.", reason="BAD_TENSOR", subject=name)
