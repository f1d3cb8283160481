"""Whether the memory that a formula promises is really there."""

import torch

from llmpq.errors import DoesNotFitError


def require_memory(device_id: str, what: str, num_bytes: int, device: torch.device) -> None:
    """Allocates so many bytes on a device, and frees them again.

    On a GPU this finds out what other processes take, and blocks that are too scattered. A host may promise memory that
    it does not have; there it finds out limits on the process only.

    Args:
        device_id: Name of the device, for the error.
        what: What the bytes are for, as the beginning of a sentence.
        num_bytes: How many.
        device: Where.

    Raises:
        DoesNotFitError: They are not there.
    """
    try:
        torch.empty(num_bytes, dtype=torch.uint8, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError is one, too
        raise DoesNotFitError.on_device(device_id, what, num_bytes) from error
