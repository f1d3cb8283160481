"""Tensors to and from the payloads of frames."""

import numpy as np
import torch

from llmpq.frames import DataType, Frame

_TORCH_TYPE = {
    DataType.FLOAT32: torch.float32,
    DataType.FLOAT16: torch.float16,
    DataType.BFLOAT16: torch.bfloat16,
    DataType.INT32: torch.int32,
}
_DATA_TYPE = {torch_type: data_type for data_type, torch_type in _TORCH_TYPE.items()}


def tensor_of(frame: Frame, device: torch.device) -> torch.Tensor:
    """The frame's payload as a tensor on `device`.

    On the CPU a payload that was put together of several messages is not copied; one that is a part of a message is: it
    is aligned to nothing, and cannot be written to.
    """
    payload = memoryview(frame.payload)
    dtype = _TORCH_TYPE[frame.data_type]
    if not payload.readonly:
        return torch.frombuffer(payload, dtype=dtype).view(frame.dimensions).to(device)
    tensor = torch.empty(frame.dimensions, dtype=dtype)
    tensor.view(-1).view(torch.uint8).numpy()[:] = np.frombuffer(payload, dtype=np.uint8)
    return tensor.to(device)


def payload_of(tensor: torch.Tensor) -> tuple[DataType, tuple[int, ...], memoryview]:
    """Element type, dimensions and bytes of a tensor; on the CPU the bytes are the tensor's own, not a copy."""
    tensor = tensor.detach().cpu().contiguous()
    return _DATA_TYPE[tensor.dtype], tuple(tensor.shape), tensor.view(-1).view(torch.uint8).numpy().data
