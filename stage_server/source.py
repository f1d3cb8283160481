"""Reads a model's parts from its checkpoint as they are stored: floats on the CPU, checked, not yet quantized."""

from dataclasses import dataclass

import torch

from llmpq.errors import InvalidInputError
from llmpq.model import read_config, shape_of
from stage_server import families
from stage_server.checkpoint import Checkpoint, open_checkpoint
from stage_server.families import DecoderSpec
from stage_server.families.spec import NormKind


@dataclass(frozen=True)
class SourceLinear:
    """A weight matrix as the checkpoint has it: (out, in), and its bias (out,) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


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
    """

    index: int
    norms: dict[str, SourceNorm]
    linears: dict[str, SourceLinear]


class ModelSource:
    """Reads parts of one model.

    Args:
        model: A directory or a .gguf file.

    Raises:
        NotFoundError: No such model, or its weights are missing.
        InvalidInputError: A family or variant that is not known.
    """

    def __init__(self, model: str) -> None:
        config = read_config(model)
        self.spec: DecoderSpec = families.describe(config)
        self._shape = shape_of(config)
        self._checkpoint: Checkpoint = open_checkpoint(model)
        self._prefix = self._find_prefix()

    def layer(self, index: int) -> SourceLayer:
        """Reads one layer's tensors.

        Raises:
            NotFoundError: A tensor is missing; names it.
            InvalidInputError: A tensor is not of the shape that the configuration says, or not finite; names it.
        """
        names = self.spec.names
        prefix = self._prefix + names.layer.format(index)
        return SourceLayer(
            index=index,
            norms={
                role: self._norm(prefix + module, self._norm_features(role)) for role, module in names.norms.items()
            },
            linears={
                role: self._linear(role, [prefix + module for module in modules])
                for role, modules in names.linears.items()
            },
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

    def _find_prefix(self) -> str:
        """What stands before the names in this checkpoint; what transformers would write, if none of the known does."""
        names = self.spec.names
        found = (p for p in names.prefixes if self._checkpoint.has(f"{p}{names.token_embedding}.weight"))
        return next(found, names.prefixes[0])

    def _linear(self, role: str, modules: list[str]) -> SourceLinear:
        """The stacked matrix of a role and its bias: this is the one place that knows how a checkpoint divides them."""
        num_rows, in_features = self._shape.linear_shapes[role]
        rows = self._shape.stacked_rows[role] if len(modules) > 1 else (num_rows,)
        weights = [self._read(f"{m}.weight", n, in_features) for m, n in zip(modules, rows, strict=True)]
        weight, bias = torch.cat(weights), None
        if role in self.spec.biased:
            bias = torch.cat([self._read(f"{m}.bias", n) for m, n in zip(modules, rows, strict=True)])
        if role == "qkv" and self.spec.is_qkv_by_head:
            order = self._rows_by_projection()
            weight, bias = weight[order], bias[order] if bias is not None else None
        return SourceLinear(weight, bias)

    def _rows_by_projection(self) -> torch.Tensor:
        """Row indices that put (head, projection, channel) into the order (projection, head, channel)."""
        rows = torch.arange(sum(self.spec.qkv_sizes))
        return rows.view(self.spec.num_heads, 3, self.spec.head_dim).transpose(0, 1).flatten()

    def _norm_features(self, role: str) -> int:
        return self._shape.head_dim if role in {"query", "key"} else self._shape.hidden_size

    def _norm(self, module: str, num_features: int) -> SourceNorm:
        if not self.spec.has_norm_weights:
            return SourceNorm(None, None)
        weight = self._read(f"{module}.weight", num_features).float() + self.spec.norm_offset
        has_bias = self.spec.norm_kind is NormKind.LAYER
        return SourceNorm(weight, self._read(f"{module}.bias", num_features) if has_bias else None)

    def _read(self, name: str, *dimensions: int) -> torch.Tensor:
        """A tensor of the checkpoint, of these dimensions."""
        tensor = self._checkpoint.tensor(name)
        if tensor.shape != dimensions or not tensor.is_floating_point():
            found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise _wrong(name, f"is {found}, but the configuration says floats of shape {dimensions}")
        if not tensor.isfinite().all():
            raise _wrong(name, "holds NaN or infinity: the checkpoint is damaged")
        return tensor


def _wrong(name: str, problem: str) -> InvalidInputError:
    return InvalidInputError(f"Tensor '{name}' {problem}.", reason="BAD_TENSOR", subject=name)
