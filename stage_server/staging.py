"""Tensors between host and device, over page-locked memory: so a copy to a GPU goes on beside what it computes."""

from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class Arriving:
    """A tensor on its way to a GPU.

    Args:
        tensor: There.
        arrival: Of all its bytes.
    """

    tensor: torch.Tensor
    arrival: torch.cuda.Event

    def taken(self) -> torch.Tensor:
        """The tensor, for what is computed from now on."""
        stream = torch.cuda.current_stream(self.tensor.device)
        stream.wait_event(self.arrival)
        self.tensor.record_stream(stream)
        return self.tensor


class Staging:
    """The way to one GPU.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Of a priority of its own, so that it is none of the streams that graphs are recorded on.
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]  # as torch declares it

    @classmethod
    def to(cls, device: torch.device) -> Self | None:
        """The way to a device; none to that of the host, where everything is."""
        return cls(device) if device.type == "cuda" else None

    def send(self, tensor: torch.Tensor) -> Arriving:
        """Begins to copy a tensor of the host; whoever computes on the device meanwhile goes on."""
        with torch.cuda.stream(self._stream):
            there = tensor.pin_memory().to(self._device, non_blocking=True)
            return Arriving(there, self._stream.record_event())


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of any device on the host, once it is computed."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host
