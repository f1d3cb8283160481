"""Reads a model's parts from its checkpoint, on the CPU and checked, as they are stored: as floats unless quantized."""

from dataclasses import dataclass, replace

import torch

from llmpq.formats import quantization_of
from llmpq.model import read_config, shape_of
from llmpq.plan import LayerPrecision
from llmpq.stored_layers import read_stored_layers
from stage_server import families
from stage_server.checkpoint import Checkpoint, open_checkpoint
from stage_server.families import DecoderSpec
from stage_server.families.spec import NormKind
from stage_server.source_linears import LinearSource, SourceLinear
from stage_server.tensor_checks import read_floats

_SIXTEEN_BITS = LayerPrecision("w16")


@dataclass(frozen=True)
class SourceNorm:
    """A norm as it multiplies and adds: weight and bias (features,), None where the family has none."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None


@dataclass(frozen=True)
class SourceLayer:
    """One decoder layer in the checkpoint's own precision, on the CPU.

    Attributes:
        index: Which layer.
        norms: By role, as in LayerNorms.
        linears: By role, stacked as in LayerLinears.
        stored_at: The precision that the linears are rounded to already; None if they are floats.
    """

    index: int
    norms: dict[str, SourceNorm]
    linears: dict[str, SourceLinear]
    stored_at: LayerPrecision | None = None

    def as_floats(self) -> "SourceLayer":
        """The layer that is stood for, its linears as floats."""
        linears = {role: SourceLinear(linear.weight, linear.bias) for role, linear in self.linears.items()}
        return replace(self, linears=linears, stored_at=None)


class ModelSource:
    """Reads parts of one model.

    Args:
        model: A directory or a .gguf file.

    Raises:
        NotFoundError: No such model, or its weights are missing.
        InvalidInputError: A family, variant or quantization that is not known.
    """

    def __init__(self, model: str) -> None:
        config = read_config(model)
        self.spec: DecoderSpec = families.describe(config)
        self._shape = shape_of(config)
        self._checkpoint: Checkpoint = open_checkpoint(model)
        self._prefix = self._find_prefix()
        self._stored_layers = read_stored_layers(model)
        #: How the checkpoint divides the matrices of layers.
        self.linears = LinearSource(self._checkpoint, self._prefix, self.spec, self._shape, quantization_of(config))

    def layer(self, index: int) -> SourceLayer:
        """Reads one layer's tensors.

        Raises:
            NotFoundError: A tensor is missing; names it.
            InvalidInputError: A tensor is not of the shape that the configuration says, or not finite; names it.
        """
        prefix = self._prefix + self.spec.names.layer.format(index)
        norms = self.spec.names.norms
        return SourceLayer(
            index=index,
            norms={role: self._norm(prefix + module, self._norm_features(role)) for role, module in norms.items()},
            linears={role: self.linears.read(index, role) for role in self.spec.names.linears},
            stored_at=self._stored_precision(index),
        )

    def token_embedding(self) -> torch.Tensor:
        """(vocab, embedding); raises as `layer`."""
        name = f"{self._prefix}{self.spec.names.token_embedding}.weight"
        return self._read(name, self._shape.vocab_size, self._shape.embedding_size)

    def position_embedding(self) -> torch.Tensor | None:
        """(positions, hidden), or None where positions are not learned; raises as `layer`."""
        name = self.spec.names.position_embedding
        if name is None:
            return None
        return self._read(f"{self._prefix}{name}.weight", self._shape.learned_positions, self._shape.hidden_size)

    def embedding_projection(self) -> torch.Tensor | None:
        """(hidden, embedding), or None where the embedding is not projected; raises as `layer`."""
        name = self.spec.names.embedding_projection
        if name is None:
            return None
        return self._read(f"{self._prefix}{name}.weight", self._shape.hidden_size, self._shape.embedding_size)

    def head_projection(self) -> torch.Tensor | None:
        """(embedding, hidden), or None where the head is not narrower than the model; raises as `layer`."""
        name = self.spec.names.head_projection
        if name is None:
            return None
        return self._read(f"{self._prefix}{name}.weight", self._shape.embedding_size, self._shape.hidden_size)

    def embedding_norm(self) -> SourceNorm | None:
        """The norm behind the embedding, if there is one; raises as `layer`."""
        name = self.spec.names.embedding_norm
        return self._norm(self._prefix + name, self._shape.hidden_size) if name is not None else None

    def final_norm(self) -> SourceNorm | None:
        """The norm before the head, if there is one; raises as `layer`."""
        name = self.spec.names.final_norm
        return self._norm(self._prefix + name, self._shape.hidden_size) if name is not None else None

    @property
    def is_tied(self) -> bool:
        """Whether the head is the token embedding."""
        return self.spec.is_tied or not self._checkpoint.has(f"{self.spec.names.head}.weight")

    def head(self) -> torch.Tensor:
        """(vocab, embedding); raises as `layer`."""
        if self.is_tied:
            return self.token_embedding()
        return self._read(f"{self.spec.names.head}.weight", self._shape.vocab_size, self._shape.embedding_size)

    def _stored_precision(self, index: int) -> LayerPrecision | None:
        stored = self._stored_layers[index] if self._stored_layers else _SIXTEEN_BITS
        return stored if stored != _SIXTEEN_BITS else None

    def _find_prefix(self) -> str:
        """What stands before the names in this checkpoint; what transformers would write, if none of the known does."""
        names = self.spec.names
        found = (p for p in names.prefixes if self._checkpoint.has(f"{p}{names.token_embedding}.weight"))
        return next(found, names.prefixes[0])

    def _norm_features(self, role: str) -> int:
        return self._shape.head_dim if role in {"query", "key"} else self._shape.hidden_size

    def _norm(self, module: str, num_features: int) -> SourceNorm:
        if not self.spec.has_norm_weights:
            return SourceNorm(None, None)
        weight = self._read(f"{module}.weight", num_features).float() + self.spec.norm_offset
        has_bias = self.spec.norm_kind is NormKind.LAYER
        return SourceNorm(weight, self._read(f"{module}.bias", num_features) if has_bias else None)

    def _read(self, name: str, *dimensions: int) -> torch.Tensor:
        return read_floats(self._checkpoint, name, *dimensions)
