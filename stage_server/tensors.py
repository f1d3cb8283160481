"""Tensors to and from the payloads of frames."""

import numpy as np
import torch
from torch.nn import functional

from llmpq.frames import INT8_GROUP_SIZE, DataType, Frame
from stage_server.staging import to_host

_TORCH_TYPE = {
    DataType.FLOAT32: torch.float32,
    DataType.FLOAT16: torch.float16,
    DataType.BFLOAT16: torch.bfloat16,
    DataType.INT32: torch.int32,
}
_DATA_TYPE = {torch_type: data_type for data_type, torch_type in _TORCH_TYPE.items()}


def raw_of(frame: Frame) -> torch.Tensor:
    """The frame's payload as (bytes,) uint8 on the host.

    A payload that was put together of several messages is not copied; one that is a part of a message is: it is aligned
    to nothing, and cannot be written to.
    """
    payload = memoryview(frame.payload)
    if not payload.readonly:
        return torch.frombuffer(payload, dtype=torch.uint8)
    raw = torch.empty(len(payload), dtype=torch.uint8)
    raw.numpy()[:] = np.frombuffer(payload, dtype=np.uint8)
    return raw


def tensor_of(frame: Frame, raw: torch.Tensor | None = None) -> torch.Tensor:
    """The frame's tensor; INT8 as float32.

    Args:
        frame: The frame.
        raw: What `raw_of` gave for it, on the device where the tensor is to be.
    """
    raw = raw_of(frame) if raw is None else raw
    if frame.data_type is DataType.INT8:
        return _dequantized(raw, frame.dimensions)
    return raw.view(_TORCH_TYPE[frame.data_type]).view(frame.dimensions)


def payload_of(tensor: torch.Tensor, *, is_int8: bool = False) -> tuple[DataType, tuple[int, ...], memoryview]:
    """Element type, dimensions and bytes of a tensor; on the CPU the bytes are the tensor's own, not a copy.

    Args:
        tensor: Of any shape; (rows, width) floats if `is_int8`.
        is_int8: Round it to 8 bits: DataType.INT8.
    """
    tensor = tensor.detach()
    data_type = DataType.INT8 if is_int8 else _DATA_TYPE[tensor.dtype]
    raw = to_host(_quantized(tensor) if is_int8 else tensor).contiguous()
    return data_type, tuple(tensor.shape), raw.view(-1).view(torch.uint8).numpy().data


def _quantized(tensor: torch.Tensor) -> torch.Tensor:
    """(rows, width) floats as (rows, bytes) uint8; a scale is the largest magnitude of its group over 127."""
    rows, width = tensor.shape
    groups = functional.pad(tensor.float(), (0, -width % INT8_GROUP_SIZE)).view(rows, -1, INT8_GROUP_SIZE)
    scales = groups.abs().amax(dim=-1, keepdim=True) / 127
    codes = (groups / scales.clamp_min(torch.finfo(torch.float32).tiny)).round_().to(torch.int8)
    parts = codes.view(rows, -1)[:, :width].view(torch.uint8), scales.view(rows, -1).view(torch.uint8)
    return torch.cat(parts, dim=1)


def _dequantized(raw: torch.Tensor, dimensions: tuple[int, ...]) -> torch.Tensor:
    """What `_quantized` made of a tensor of these dimensions, as float32."""
    rows, width = dimensions
    parts = raw.view(rows, -1)
    scales = parts[:, width:].contiguous().view(torch.float32)
    return parts[:, :width].view(torch.int8) * scales.repeat_interleave(INT8_GROUP_SIZE, dim=1)[:, :width]
