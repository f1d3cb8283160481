"""The weight matrices of a layer as a checkpoint has them, stacked as the layer uses them, and divided again."""

from dataclasses import dataclass

import torch

from llmpq.formats import Quantization, StoredLinear
from llmpq.model import ModelShape
from quantizer.rounded import RoundedWeight, select_rows, stack
from stage_server.checkpoint import Checkpoint
from stage_server.families import DecoderSpec
from stage_server.quantized_checkpoint import StoredWeight, read_rounded
from stage_server.tensor_checks import read_floats, wrong_tensor


@dataclass(frozen=True)
class SourceLinear:
    """A weight matrix as the checkpoint has it.

    Attributes:
        stored: The weight (out, in), rounded where the checkpoint is quantized.
        bias: (out,) or None.
        input_order: int64 (in,), which input channel each column belongs to; None if each to its own.
    """

    stored: torch.Tensor | RoundedWeight
    bias: torch.Tensor | None
    input_order: torch.Tensor | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The weight (out, in) as floats, its columns in the order of the inputs."""
        if isinstance(self.stored, torch.Tensor):
            return self.stored
        weight = self.stored.dequantized()
        return weight if self.input_order is None else weight[:, self.input_order.argsort()]


class LinearSource:
    """Knows how a checkpoint divides the stacked matrices of a layer.

    Args:
        checkpoint: Where to read.
        prefix: What stands before the names of layers in it.
        spec: Of the model.
        shape: Of the model.
        quantization: How linears are stored, if they are rounded.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        prefix: str,
        spec: DecoderSpec,
        shape: ModelShape,
        quantization: Quantization | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._prefix = prefix
        self._spec = spec
        self._shape = shape
        self._quantization = quantization

    def read(self, index: int, role: str) -> SourceLinear:
        """The stacked matrix of a role in a layer, and its bias; raises as `read_floats` and `read_rounded`."""
        weight, input_order = self._weight(index, role)
        bias = self._bias(index, role) if role in self._spec.biased else None
        if self._is_by_head(role):
            order = self._rows_by_projection()
            weight = weight[order] if isinstance(weight, torch.Tensor) else select_rows(weight, order)
            bias = bias[order] if bias is not None else None
        return SourceLinear(weight, bias, input_order)

    def divided(self, index: int, role: str, weight: RoundedWeight) -> dict[str, RoundedWeight]:
        """A stacked matrix by the full names of the modules that transformers divides it into: undoes `read`."""
        if self._is_by_head(role):
            weight = select_rows(weight, self._rows_by_projection().argsort())
        divided, first = {}, 0
        for module, num_rows in self._rows(role).items():
            divided[self._spec.names.prefixes[0] + self._in_layer(index, module)] = select_rows(
                weight, slice(first, first + num_rows)
            )
            first += num_rows
        return divided

    def _weight(self, index: int, role: str) -> tuple[torch.Tensor | RoundedWeight, torch.Tensor | None]:
        """The stacked matrix and its input order; all parts are floats or all are rounded, as those of a layer are."""
        stored = {module: self._how_stored(index, module) for module in self._rows(role)}
        if None in stored.values():
            return self._floats(index, role), None
        rounded = {module: self._rounded(index, role, module, how) for module, how in stored.items() if how is not None}
        order = next(iter(rounded.values())).input_order
        for module, part in rounded.items():
            if order is not None and part.input_order is not None and not torch.equal(order, part.input_order):
                problem = f"puts inputs into other groups than '{next(iter(rounded))}', with which it is stacked"
                raise wrong_tensor(self._prefix + self._in_layer(index, module), problem)
        return stack([part.weight for part in rounded.values()]), order

    def _how_stored(self, index: int, module: str) -> StoredLinear | None:
        """How a module is stored if it is rounded; None if it is floats."""
        if self._quantization is None:
            return None
        return self._quantization.of(self._spec.names.prefixes[0] + self._in_layer(index, module))

    def _rounded(self, index: int, role: str, module: str, stored: StoredLinear) -> StoredWeight:
        shape = self._rows(role)[module], self._shape.linear_shapes[role][1]
        return read_rounded(self._checkpoint, self._prefix + self._in_layer(index, module), stored, shape)

    def _floats(self, index: int, role: str) -> torch.Tensor:
        """The stacked matrix of parts that are floats; each is let go of before the next is read."""
        shape, rows = self._shape.linear_shapes[role], self._rows(role)
        stacked, first = torch.empty(0), 0
        for module, num_rows in rows.items():
            name = f"{self._prefix}{self._in_layer(index, module)}.weight"
            part = read_floats(self._checkpoint, name, num_rows, shape[1])
            if num_rows == shape[0]:
                return part
            if first == 0:
                stacked = part.new_empty(shape)
            stacked = stacked.to(torch.promote_types(stacked.dtype, part.dtype))
            stacked[first : first + num_rows] = part
            first += num_rows
        return stacked

    def _bias(self, index: int, role: str) -> torch.Tensor:
        names = {f"{self._prefix}{self._in_layer(index, module)}.bias": n for module, n in self._rows(role).items()}
        return torch.cat([read_floats(self._checkpoint, name, num_rows) for name, num_rows in names.items()])

    def _rows(self, role: str) -> dict[str, int]:
        """The modules of a role with their numbers of rows."""
        modules = self._spec.names.linears[role]
        rows = self._shape.stacked_rows[role]
        return dict(zip(modules, rows if len(modules) > 1 else (sum(rows),), strict=True))

    def _in_layer(self, index: int, module: str) -> str:
        return self._spec.names.layer.format(index) + module

    def _is_by_head(self, role: str) -> bool:
        return role == "qkv" and self._spec.is_qkv_by_head

    def _rows_by_projection(self) -> torch.Tensor:
        """Row indices that put (head, projection, channel) into the order (projection, head, channel)."""
        rows = torch.arange(sum(self._spec.qkv_sizes))
        return rows.view(self._spec.num_heads, 3, self._spec.head_dim).transpose(0, 1).flatten()
