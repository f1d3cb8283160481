"""Reads a model's parts from its checkpoint, on the CPU and checked, as they are stored: as floats unless quantized."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce

import torch

from llmpq.formats import quantization_of
from llmpq.model import read_config
from llmpq.plan import LayerPrecision
from llmpq.stored_layers import read_stored_layers
from stage_server import families
from stage_server.checkpoint import Checkpoint, open_checkpoint
from stage_server.families import DecoderSpec
from stage_server.families.spec import NormKind
from stage_server.source_linears import LinearSource, SourceLinear
from stage_server.tensor_checks import read_float_rows, read_floats

_SIXTEEN_BITS = LayerPrecision("w16")


@dataclass(frozen=True)
class SourceNorm:
    """A norm as it multiplies and adds: weight and bias (features,), None where the family has none."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None


@dataclass(frozen=True)
class SourceLayer:
    """One decoder layer, or a part of one, that is not built yet.

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

    def joined(self, other: "SourceLayer") -> "SourceLayer":
        """This part of a layer, and another part of it."""
        return replace(self, norms=self.norms | other.norms, linears=self.linears | other.linears)


class ModelSource:
    """Reads parts of one model.

    Args:
        model: A directory, a .gguf file or a name on the Hub.
        report: Told in a sentence what is being fetched from the Hub.

    Raises:
        NotFoundError: No such model, or its weights are missing.
        UnavailableError: They are on the Hub, which cannot be reached.
        InvalidInputError: A family, variant or quantization that is not known.
    """

    def __init__(self, model: str, report: Callable[[str], None] = lambda _: None) -> None:
        config = read_config(model)
        self.spec: DecoderSpec = families.describe(config)
        self.shape = config.shape
        self._checkpoint: Checkpoint = open_checkpoint(model, report)
        self._prefix = self._find_prefix()
        self._stored_layers = read_stored_layers(model)
        #: How the checkpoint divides the matrices of layers.
        self.linears = LinearSource(self._checkpoint, self._prefix, self.spec, self.shape, quantization_of(config))

    def expect(self, layers: Iterable[int], *, embedding: bool = False, head: bool = False) -> None:
        """Says what will be read, so that what must be fetched can be fetched together."""
        names = self.spec.names
        modules = [names.layer.format(index) for index in layers]
        if embedding or (head and self.is_tied):
            modules.append(names.token_embedding)
        if embedding:
            modules += filter(None, (names.position_embedding, names.embedding_projection, names.embedding_norm))
        if head:
            modules += filter(None, (names.final_norm, names.head_projection))
        self._checkpoint.expect([*(self._prefix + module for module in modules), *([names.head] if head else [])])

    def layer(self, index: int) -> SourceLayer:
        """Reads one layer's tensors onto the CPU.

        Raises:
            NotFoundError: A tensor is missing; names it.
            InvalidInputError: A tensor is not of the shape that the configuration says, or not finite; names it.
        """
        return reduce(SourceLayer.joined, self.parts(index))

    def parts(self, index: int) -> Iterator[SourceLayer]:
        """Reads a layer in parts: its norms, then one matrix after another, of which the caller holds what it needs.

        Raises as `layer`.
        """
        prefix = self._prefix + self.spec.names.layer.format(index)
        norms = self.spec.names.norms
        stored_at = self.stored_precision(index)
        read_norms = {role: self._norm(prefix + module, self._norm_features(role)) for role, module in norms.items()}
        yield SourceLayer(index, read_norms, {}, stored_at)
        for role in self.spec.names.linears:
            yield SourceLayer(index, {}, {role: self.linears.read(index, role)}, stored_at)

    def stored_precision(self, index: int) -> LayerPrecision | None:
        """The precision that a layer is rounded to already; None if it is floats."""
        stored = self._stored_layers[index] if self._stored_layers else _SIXTEEN_BITS
        return stored if stored != _SIXTEEN_BITS else None

    def token_embedding(self) -> torch.Tensor:
        """(vocab, embedding); raises as `layer`."""
        return torch.cat(list(self.embedding_rows()))

    def embedding_rows(self) -> Iterator[torch.Tensor]:
        """The rows of the token embedding (vocab, embedding), a block at a time; raises as `layer`."""
        return self._table_rows(f"{self._prefix}{self.spec.names.token_embedding}.weight")

    def head_rows(self) -> Iterator[torch.Tensor]:
        """The rows of the head (vocab, embedding), a block at a time; raises as `layer`."""
        return self.embedding_rows() if self.is_tied else self._table_rows(f"{self.spec.names.head}.weight")

    def position_embedding(self) -> torch.Tensor | None:
        """(positions, hidden), or None where positions are not learned; raises as `layer`."""
        name = self.spec.names.position_embedding
        if name is None:
            return None
        return self._read(f"{self._prefix}{name}.weight", self.shape.learned_positions, self.shape.hidden_size)

    def embedding_projection(self) -> torch.Tensor | None:
        """(hidden, embedding), or None where the embedding is not projected; raises as `layer`."""
        name = self.spec.names.embedding_projection
        if name is None:
            return None
        return self._read(f"{self._prefix}{name}.weight", self.shape.hidden_size, self.shape.embedding_size)

    def head_projection(self) -> torch.Tensor | None:
        """(embedding, hidden), or None where the head is not narrower than the model; raises as `layer`."""
        name = self.spec.names.head_projection
        if name is None:
            return None
        return self._read(f"{self._prefix}{name}.weight", self.shape.embedding_size, self.shape.hidden_size)

    def embedding_norm(self) -> SourceNorm | None:
        """The norm behind the embedding, if there is one; raises as `layer`."""
        name = self.spec.names.embedding_norm
        return self._norm(self._prefix + name, self.shape.hidden_size) if name is not None else None

    def final_norm(self) -> SourceNorm | None:
        """The norm before the head, if there is one; raises as `layer`."""
        name = self.spec.names.final_norm
        return self._norm(self._prefix + name, self.shape.hidden_size) if name is not None else None

    @property
    def is_tied(self) -> bool:
        """Whether the head is the token embedding."""
        return self.spec.is_tied or not self._checkpoint.has(f"{self.spec.names.head}.weight")

    def plain(self, name: str) -> torch.Tensor | None:
        """A tensor as it is stored, by the name that transformers gives it; None if the checkpoint has none such."""
        written, own = self.spec.names.prefixes[0], self._prefix
        stored_name = own + name.removeprefix(written) if name.startswith(written) else name
        return self._checkpoint.tensor(stored_name) if self._checkpoint.has(stored_name) else None

    def _find_prefix(self) -> str:
        """What stands before the names in this checkpoint; what transformers would write, if none of the known does."""
        names = self.spec.names
        found = (p for p in names.prefixes if self._checkpoint.has(f"{p}{names.token_embedding}.weight"))
        return next(found, names.prefixes[0])

    def _norm_features(self, role: str) -> int:
        return self.shape.head_dim if role in {"query", "key"} else self.shape.hidden_size

    def _norm(self, module: str, num_features: int) -> SourceNorm:
        if not self.spec.has_norm_weights:
            return SourceNorm(None, None)
        weight = self._read(f"{module}.weight", num_features).float() + self.spec.norm_offset
        has_bias = self.spec.norm_kind is NormKind.LAYER
        return SourceNorm(weight, self._read(f"{module}.bias", num_features) if has_bias else None)

    def _table_rows(self, name: str) -> Iterator[torch.Tensor]:
        return read_float_rows(self._checkpoint, name, self.shape.vocab_size, self.shape.embedding_size)

    def _read(self, name: str, *dimensions: int) -> torch.Tensor:
        return read_floats(self._checkpoint, name, *dimensions)
