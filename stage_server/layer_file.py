"""A rounded layer as a safetensors file: codes packed as densely as their bits, with norms and biases."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llmpq.errors import InvalidInputError
from llmpq.messages import from_fields
from llmpq.plan import LayerPrecision
from llmpq.schemes import SCHEMES
from quantizer.packing import pack, unpack
from quantizer.rounded import GroupRounded, RoundedWeight, RowRounded
from stage_server.safetensors_checkpoint import local_reader
from stage_server.safetensors_writer import write_safetensors
from stage_server.source import SourceLayer, SourceNorm
from stage_server.source_linears import SourceLinear

#: Entry of the file's metadata that describes the layer.
_DESCRIPTION = "layer"


def write_layer(layer: SourceLayer, path: Path) -> None:
    """Writes a layer whose linears are rounded, to int8 or to groups; its tensors may be on any device.

    Raises:
        OSError: The file cannot be written, or not all of it.
    """
    tensors: dict[str, torch.Tensor | None] = {}
    for role, norm in layer.norms.items():
        tensors |= {f"norms.{role}.{name}": value for name, value in vars(norm).items()}
    for role, linear in layer.linears.items():
        tensors |= {f"linears.{role}.{name}": value for name, value in _stored(linear).items()}
    present = {name: tensor.cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
    description = {
        "index": layer.index,
        "precision": asdict(layer.stored_at) if layer.stored_at else None,
        "norms": list(layer.norms),
        "columns": {role: linear.stored.shape[1] for role, linear in layer.linears.items()},
        "rotated": [role for role, linear in layer.linears.items() if _is_rotated(linear)],
        "crc32": _checksum(present),
    }
    write_safetensors(present, path, {_DESCRIPTION: json.dumps(description)})


def read_layer(path: Path) -> SourceLayer:
    """Reads a layer onto the CPU.

    Raises:
        InvalidInputError: The file is damaged.
        NotFoundError: It is not there.
    """
    reader = local_reader(path)
    tensors = {name: reader.tensor(name) for name in reader.entries}
    try:
        fields = json.loads(reader.metadata[_DESCRIPTION])
        if _checksum(tensors) != fields["crc32"]:
            raise InvalidInputError(f"File '{path}' is damaged: its checksum is wrong.", reason="DAMAGED_FILE")
        precision = from_fields(LayerPrecision, fields["precision"])
        return SourceLayer(
            index=fields["index"],
            norms={
                role: SourceNorm(tensors.get(f"norms.{role}.weight"), tensors.get(f"norms.{role}.bias"))
                for role in fields["norms"]
            },
            linears={
                role: _linear(_of_role(tensors, role), precision, columns, is_rotated=role in fields["rotated"])
                for role, columns in fields["columns"].items()
            },
            stored_at=precision,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"File '{path}' is damaged: {error!r}.", reason="DAMAGED_FILE") from error


def _stored(linear: SourceLinear) -> dict[str, torch.Tensor | None]:
    """The tensors of a linear by name."""
    weight = linear.stored
    assert isinstance(weight, GroupRounded | RowRounded)  # noqa: S101 others are not worth keeping
    parts: dict[str, torch.Tensor | None] = {"bias": linear.bias, "input_order": linear.input_order}
    if isinstance(weight, RowRounded):
        return parts | {"codes": weight.codes, "scales": weight.scales}
    return parts | {"codes": pack(weight.codes, weight.bits), "scales": weight.scales, "zeros": weight.zeros}


def _is_rotated(linear: SourceLinear) -> bool:
    return isinstance(linear.stored, RowRounded) and linear.stored.is_rotated


def _linear(
    tensors: Mapping[str, torch.Tensor], precision: LayerPrecision, num_columns: int, *, is_rotated: bool
) -> SourceLinear:
    """Undoes `_stored`."""
    scheme = SCHEMES[precision.scheme]
    weight: RoundedWeight
    if scheme.is_grouped:
        codes = unpack(tensors["codes"], scheme.weight_bits, num_columns)
        weight = GroupRounded(codes, tensors["scales"], tensors["zeros"], scheme.weight_bits, precision.group_size)
    else:
        weight = RowRounded(tensors["codes"], tensors["scales"], is_rotated)
    return SourceLinear(weight, tensors.get("bias"), tensors.get("input_order"))


def _of_role(tensors: Mapping[str, torch.Tensor], role: str) -> dict[str, torch.Tensor]:
    start = f"linears.{role}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    """CRC-32 over the bytes of all tensors, in the order of their names."""
    checksum = 0
    for _, tensor in sorted(tensors.items()):
        content: Any = tensor.flatten().view(torch.uint8).numpy()
        checksum = zlib.crc32(content, checksum)
    return checksum
