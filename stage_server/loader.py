"""Builds a stage's slice of a model from its source: one layer at a time, quantized on the way to the device."""

from collections.abc import Iterator

import torch

from llmpq.plan import NEAREST, LayerPrecision, Rounding
from llmpq.stored_layers import other_precision
from quantizer.linear import QuantizedLinear, build_linear
from quantizer.methods import round_weight, to_sixteen_bits
from quantizer.reordered import ReorderedLinear
from quantizer.rounded import to_device
from stage_server.decoder_layer import DecoderLayer, LayerLinears, LayerNorms, Norm
from stage_server.ends import Embedding, Head
from stage_server.source import ModelSource, SourceLayer, SourceNorm
from stage_server.source_linears import SourceLinear

_HEAD_PRECISION = LayerPrecision("w16")


class ModelLoader:
    """Puts parts of one model onto one device.

    Args:
        model: A directory or a .gguf file.
        device: Where the parts are to live.
        compute_dtype: Type of activations.

    Raises:
        NotFoundError, InvalidInputError: As ModelSource.
    """

    def __init__(self, model: str, device: torch.device, compute_dtype: torch.dtype) -> None:
        self.model = model
        self.source = ModelSource(model)
        self.spec = self.source.spec
        self._device = device
        self._dtype = compute_dtype

    def build_layer(self, source: SourceLayer, precision: LayerPrecision, rounding: Rounding = NEAREST) -> DecoderLayer:
        """Puts a layer onto the device, quantized on the way unless it is stored so.

        Raises:
            InvalidInputError: An unknown precision or rounding, or another one than the layer is stored at.
        """
        if source.stored_at is not None and source.stored_at != precision:
            raise other_precision(f"Layer {source.index} of the model at '{self.model}'", source.stored_at, precision)
        linears = {role: self._quantize(linear, precision, rounding) for role, linear in source.linears.items()}
        norms = {role: self._norm(norm) for role, norm in source.norms.items()}
        return DecoderLayer(self.spec, source.index, LayerNorms(**norms), LayerLinears(**linears))

    def load_layers(
        self, first: int, precisions: tuple[LayerPrecision, ...], rounding: Rounding = NEAREST
    ) -> Iterator[DecoderLayer]:
        """Loads consecutive layers, one at a time; raises as ModelSource.layer and `build_layer`."""
        for offset, precision in enumerate(precisions):
            yield self.build_layer(self.source.layer(first + offset), precision, rounding)

    def load_embedding(self) -> Embedding:
        """Loads the embedding in 16 bits."""
        positions, projection = self.source.position_embedding(), self.source.embedding_projection()
        norm = self.source.embedding_norm()
        return Embedding(
            tokens=self._to_device_16(self.source.token_embedding()),
            compute_dtype=self._dtype,
            positions=self._to_device_16(positions) if positions is not None else None,
            position_offset=self.spec.position_offset,
            scale=self.spec.embedding_scale,
            projection=self._sixteen_bit_linear(projection) if projection is not None else None,
            norm=self._norm(norm) if norm is not None else None,
        )

    def load_head(self, embedding: Embedding | None) -> Head:
        """Loads final norm and head in 16 bits; a tied head uses the embedding's memory where the stage has both."""
        norm, projection = self.source.final_norm(), self.source.head_projection()
        is_shared = self.source.is_tied and embedding is not None
        weight = embedding.tokens if is_shared and embedding is not None else self.source.head()
        return Head(
            vocabulary=self._sixteen_bit_linear(weight),
            is_shared=is_shared,
            norm=self._norm(norm) if norm is not None else None,
            projection=self._sixteen_bit_linear(projection) if projection is not None else None,
            soft_cap=self.spec.logit_soft_cap,
        )

    def _sixteen_bit_linear(self, weight: torch.Tensor) -> QuantizedLinear:
        return self._quantize(SourceLinear(weight, None), _HEAD_PRECISION, NEAREST)

    def _quantize(self, linear: SourceLinear, precision: LayerPrecision, rounding: Rounding) -> QuantizedLinear:
        if isinstance(linear.stored, torch.Tensor):
            rounded = round_weight(linear.stored.to(self._device), precision, rounding)
        else:
            rounded = to_device(linear.stored, self._device)
        built = build_linear(rounded, linear.bias, precision.scheme, compute_dtype=self._dtype)
        return built if linear.input_order is None else ReorderedLinear(built, linear.input_order.to(self._device))

    def _norm(self, norm: SourceNorm) -> Norm:
        return Norm(
            kind=self.spec.norm_kind,
            weight=norm.weight.to(self._device, torch.float32) if norm.weight is not None else None,
            bias=norm.bias.to(self._device, torch.float32) if norm.bias is not None else None,
            eps=self.spec.norm_eps,
        )

    def _to_device_16(self, tensor: torch.Tensor) -> torch.Tensor:
        """16-bit copy; float32 becomes float16 unless it overflows, as in the w16 scheme."""
        return to_sixteen_bits(tensor).to(self._device)
