"""What every launch of a kernel needs of its tensors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def dense_rows(x: torch.Tensor) -> torch.Tensor:
    """The same, unless the elements of a row are apart in memory."""
    return x if x.stride(1) == 1 else x.contiguous()


@contextmanager
def current_device(device: torch.device) -> Iterator[None]:
    """Makes a device the current one, which Triton launches on; on the CPU (Triton's interpreter) there is none."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
    else:
        yield
