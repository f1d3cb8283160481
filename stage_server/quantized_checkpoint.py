"""Reads weights that are rounded already: from a quantized checkpoint, checked, as they are stored."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from llmpq.formats import Layout, StoredLinear
from llmpq.schemes import SCHEMES
from quantizer.formats import compressed_tensors, gptq
from quantizer.rounded import GroupRounded, RoundedWeight, RowRounded
from stage_server.checkpoint import Checkpoint
from stage_server.tensor_checks import read_floats, wrong_tensor

#: Half the smallest step of float16: scales may be off by it, which nothing near the size of a weight notices.
_FLOAT16_TOLERANCE = 2.0**-25
_SCALES = ("weight_scale", "scales")
_GROUP_INDICES = ("weight_g_idx", "g_idx")
_WAY_OUT = "take the model that was not quantized: llmpq quantizes it as it loads"


@dataclass(frozen=True)
class StoredWeight:
    """A weight as it is stored.

    Attributes:
        weight: (out, in).
        input_order: int64 (in,): which input channel each column belongs to; None if each to its own.
    """

    weight: RoundedWeight
    input_order: torch.Tensor | None = None


def read_rounded(checkpoint: Checkpoint, module: str, stored: StoredLinear, shape: tuple[int, int]) -> StoredWeight:
    """Reads the weight of a linear.

    Args:
        checkpoint: Has the tensors.
        module: Name of the linear in it.
        stored: How the linear is stored.
        shape: (out, in) of the weight.

    Raises:
        NotFoundError: A tensor is missing; names it.
        InvalidInputError: A tensor is not what the configuration says, or what no precision holds; names it.
    """
    is_gptq = stored.layout in {Layout.GPTQ_1, Layout.GPTQ_2}
    shapes = (gptq if is_gptq else compressed_tensors).tensor_shapes(stored, *shape)
    if not stored.is_scattered and not checkpoint.has(f"{module}.g_idx"):
        shapes.pop("g_idx", None)
    tensors = {name: _read(checkpoint, f"{module}.{name}", dimensions) for name, dimensions in shapes.items()}
    if is_gptq or SCHEMES[stored.precision.scheme].is_grouped:
        _check_float16(tensors, module)
    if is_gptq:
        weight = _as_rows(gptq.from_tensors(tensors, stored, shape[1]), module)
    else:
        weight = compressed_tensors.from_tensors(tensors, stored, shape[1])
    order = _input_order(tensors, stored, module)
    if order is not None and isinstance(weight, GroupRounded):
        weight = replace(weight, codes=weight.codes[:, order])
    return StoredWeight(weight, order)


def _read(checkpoint: Checkpoint, name: str, dimensions: tuple[int, ...]) -> torch.Tensor:
    if name.endswith(_SCALES):
        return read_floats(checkpoint, name, *dimensions)
    tensor = checkpoint.tensor(name)
    dtype = torch.int8 if name.endswith(".weight") else torch.int32
    if tensor.shape != dimensions or tensor.dtype != dtype:
        found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise wrong_tensor(name, f"is {found}, but the quantization_config says {dtype} of shape {dimensions}")
    return tensor


def _check_float16(tensors: Mapping[str, torch.Tensor], module: str) -> None:
    """Refuses scales of groups that float16, in which they are held, is not exact for."""
    name = next(name for name in _SCALES if name in tensors)
    scales = tensors[name].float()
    if not ((scales.half().float() - scales).abs() <= _FLOAT16_TOLERANCE).all():
        raise wrong_tensor(f"{module}.{name}", f"has scales that float16 cannot hold; convert them, or {_WAY_OUT}")


def _as_rows(weight: GroupRounded, module: str) -> RowRounded | GroupRounded:
    """A weight of 8 bits as the signed codes that it stands for; others as they are."""
    middle = 2 ** (weight.bits - 1)
    if weight.bits < SCHEMES["w8"].weight_bits:
        return weight
    if not (weight.zeros == middle).all():
        raise wrong_tensor(f"{module}.qzeros", f"is not symmetric, which weights of 8 bits must be; {_WAY_OUT}")
    return RowRounded((weight.codes ^ middle).view(torch.int8), weight.scales.flatten().float())


def _input_order(tensors: Mapping[str, torch.Tensor], stored: StoredLinear, module: str) -> torch.Tensor | None:
    """The input channels group by group, if groups are scattered; refuses groups of another size than is said."""
    name = next((name for name in _GROUP_INDICES if name in tensors), None)
    if name is None:
        return None
    group_of = tensors[name].long()
    regular = torch.arange(len(group_of)) // (stored.precision.group_size or len(group_of))
    order = group_of.argsort(stable=True)
    if not torch.equal(group_of[order], regular):
        raise wrong_tensor(f"{module}.{name}", f"has groups of other sizes than {stored.precision.group_size}")
    if stored.is_scattered:
        return order
    if not torch.equal(group_of, regular):
        raise wrong_tensor(f"{module}.{name}", "scatters groups, though quantization_config.desc_act is not set")
    return None
