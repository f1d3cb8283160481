"""Builds the parts of a model from its source, quantized on the way to the device."""

from collections.abc import Callable, Iterator

import torch

from llmpq.plan import NEAREST, LayerPrecision, Rounding
from llmpq.stored_layers import other_precision
from quantizer.input_statistics import InputStatistics
from quantizer.linear import QuantizedLinear, build_linear
from quantizer.methods import round_weight, to_sixteen_bits
from quantizer.native.library import kernels
from quantizer.reordered import ReorderedLinear
from quantizer.rounded import RoundedWeight, SixteenBits, to_device
from stage_server.decoder_layer import DecoderLayer, LayerLinears
from stage_server.ends import Embedding, Head
from stage_server.norms import LayerNorms, Norm
from stage_server.source import ModelSource, SourceLayer, SourceNorm
from stage_server.source_linears import SourceLinear
from stage_server.vocabulary_screen import VocabularyScreen


class ModelLoader:
    """Puts parts of one model onto one device.

    Args:
        model: A directory, a .gguf file or a name on the Hub.
        device: Where the parts are to live.
        compute_dtype: Type of activations.
        report: Told in a sentence what takes long.

    Raises:
        NotFoundError, UnavailableError, InvalidInputError: As ModelSource.
    """

    def __init__(
        self,
        model: str,
        device: torch.device,
        compute_dtype: torch.dtype,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.model = model
        self.report = report
        self.source = ModelSource(model, report)
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
        linears = {
            role: self._build(linear, self.round_linear(linear, precision, rounding), precision.scheme)
            for role, linear in source.linears.items()
        }
        norms = {role: self._norm(norm) for role, norm in source.norms.items()}
        return DecoderLayer(self.spec, source.index, LayerNorms(**norms), LayerLinears(**linears))

    def load_embedding(self) -> Embedding:
        """Loads the embedding in 16 bits."""
        positions, projection = self.source.position_embedding(), self.source.embedding_projection()
        norm = self.source.embedding_norm()
        return Embedding(
            tokens=self._load_vocabulary(self.source.embedding_rows),
            compute_dtype=self._dtype,
            positions=self._to_device_16(positions) if positions is not None else None,
            position_offset=self.spec.position_offset,
            scale=self.spec.embedding_scale,
            projection=self._sixteen_bit_linear(projection) if projection is not None else None,
            norm=self._norm(norm) if norm is not None else None,
        )

    def load_head(self, embedding: Embedding | None, *, is_screened: bool = False) -> Head:
        """Loads final norm and head in 16 bits; a tied head uses the embedding's memory where the stage has both.

        Args:
            embedding: Of this stage, if it has one.
            is_screened: Whether the most likely tokens are found through a `VocabularyScreen`, where there are kernels.
        """
        norm, projection = self.source.final_norm(), self.source.head_projection()
        is_shared = self.source.is_tied and embedding is not None
        weight = embedding.tokens if is_shared and embedding else self._load_vocabulary(self.source.head_rows)
        native = kernels() if is_screened else None
        return Head(
            vocabulary=self._sixteen_bit_linear(weight),
            is_shared=is_shared,
            norm=self._norm(norm) if norm is not None else None,
            projection=self._sixteen_bit_linear(projection) if projection is not None else None,
            soft_cap=self.spec.logit_soft_cap,
            screen=VocabularyScreen(weight, native) if native is not None else None,
        )

    def _load_vocabulary(self, rows: Callable[[], Iterator[torch.Tensor]]) -> torch.Tensor:
        """As `load_table`, in the type that is computed in if that has 16 bits, as w16 layers are (`build_linear`)."""
        return self.load_table(rows, self._dtype if self._dtype.itemsize == 2 else None)  # noqa: PLR2004 bytes

    def _sixteen_bit_linear(self, weight: torch.Tensor) -> QuantizedLinear:
        return build_linear(SixteenBits(self._to_device_16(weight)), None, "w16", compute_dtype=self._dtype)

    def round_linear(
        self,
        linear: SourceLinear,
        precision: LayerPrecision,
        rounding: Rounding = NEAREST,
        inputs: InputStatistics | None = None,
    ) -> RoundedWeight:
        """The weight as it is served, on the device: rounded, unless it is stored so; raises as `round_weight`."""
        if isinstance(linear.stored, torch.Tensor):
            return round_weight(linear.stored.to(self._device), precision, rounding, inputs)
        return to_device(linear.stored, self._device)

    def _build(self, linear: SourceLinear, weight: RoundedWeight, scheme: str) -> QuantizedLinear:
        built = build_linear(weight, linear.bias, scheme, compute_dtype=self._dtype)
        return built if linear.input_order is None else ReorderedLinear(built, linear.input_order.to(self._device))

    def _norm(self, norm: SourceNorm) -> Norm:
        return Norm(
            kind=self.spec.norm_kind,
            weight=norm.weight.to(self._device, torch.float32) if norm.weight is not None else None,
            bias=norm.bias.to(self._device, torch.float32) if norm.bias is not None else None,
            eps=self.spec.norm_eps,
        )

    def load_table(self, rows: Callable[[], Iterator[torch.Tensor]], dtype: torch.dtype | None = None) -> torch.Tensor:
        """The vocabulary's matrix (vocab, embedding) in 16 bits, in `dtype` or else in that of the w16 scheme.

        It is larger than several layers together, so it never exists as a whole in the type that it is stored in.
        """
        table, first = torch.empty(0), 0
        for block in rows():
            narrow = block.to(dtype) if dtype else to_sixteen_bits(block)
            if first == 0:
                shape = self.source.shape.vocab_size, self.source.shape.embedding_size
                table = torch.empty(shape, dtype=narrow.dtype, device=self._device)
            if narrow.dtype != table.dtype:  # some rows fit into float16, and others do not
                return self.load_table(rows, torch.bfloat16)
            table[first : first + len(narrow)] = narrow
            first += len(narrow)
        return table

    def _to_device_16(self, tensor: torch.Tensor) -> torch.Tensor:
        """16-bit copy; float32 becomes float16 unless it overflows, as in the w16 scheme."""
        return to_sixteen_bits(tensor).to(self._device)
