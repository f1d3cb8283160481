"""Reads a model's parts from its checkpoint as they are stored: floats on the CPU, checked, not yet quantized."""

from dataclasses import dataclass

import torch

from llmpq.errors import InvalidInputError
from llmpq.model import read_config, shape_of
from stage_server import families
from stage_server.checkpoint import Checkpoint, open_checkpoint
from stage_server.families import DecoderSpec


@dataclass(frozen=True)
class SourceLinear:
    """A weight matrix as the checkpoint has it: (out, in), and its bias (out,) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class SourceNorm:
    """A norm as the checkpoint has it: weight (hidden,), and bias (hidden,) or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class SourceLayer:
    """One decoder layer in the checkpoint's own precision, on the CPU; linears stacked as in LayerLinears."""

    attention_norm: SourceNorm
    ffn_norm: SourceNorm
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

    def layer(self, index: int) -> SourceLayer:
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
            attention_norm=self._norm(names.attention_norm.format(index)),
            ffn_norm=self._norm(names.ffn_norm.format(index)),
            linears={
                role: self._stacked(
                    {name.format(index): next(shapes) for name in members},
                    has_bias=role in self.spec.biased,
                )
                for role, members in roles.items()
            },
        )

    def token_embedding(self) -> torch.Tensor:
        """(vocab, hidden); raises as `layer`."""
        return self._read(self.spec.names.token_embedding, self._shape.vocab_size, self._shape.hidden_size)

    def position_embedding(self) -> torch.Tensor | None:
        """(positions, hidden), or None where positions are not learned; raises as `layer`."""
        name = self.spec.names.position_embedding
        return self._read(name, self._shape.learned_positions, self._shape.hidden_size) if name else None

    def final_norm(self) -> SourceNorm | None:
        """The norm before the head, if there is one; raises as `layer`."""
        return self._norm(self.spec.names.final_norm) if self.spec.names.final_norm else None

    @property
    def is_tied(self) -> bool:
        """Whether the head is the token embedding."""
        return self.spec.is_tied or not self._checkpoint.has(f"{self.spec.names.head}.weight")

    def head(self) -> torch.Tensor:
        """(vocab, hidden); raises as `layer`."""
        if self.is_tied:
            return self.token_embedding()
        return self._read(f"{self.spec.names.head}.weight", self._shape.vocab_size, self._shape.hidden_size)

    def _stacked(self, shapes: dict[str, tuple[int, int]], *, has_bias: bool) -> SourceLinear:
        """The weights of these shapes, by module, and their biases, stacked along the output axis."""
        weights = [self._read(f"{module}.weight", *shape) for module, shape in shapes.items()]
        biases = [self._read(f"{module}.bias", out) for module, (out, _) in shapes.items()] if has_bias else []
        return SourceLinear(torch.cat(weights), torch.cat(biases) if biases else None)

    def _norm(self, module: str) -> SourceNorm:
        weight = self._read(f"{module}.weight", self._shape.hidden_size)
        has_bias = self._checkpoint.has(f"{module}.bias")
        return SourceNorm(weight, self._read(f"{module}.bias", self._shape.hidden_size) if has_bias else None)

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
