"""Profiles on disk, so that a mesh that is started for a single call need not measure its devices again."""

from collections.abc import Sequence
from contextlib import suppress

import torch

from llmpq.cache_dir import cache_directory
from llmpq.code_digest import code_digest
from llmpq.device import LatencyPoint
from llmpq.measurements import MeasurementCache
from llmpq.model import ModelFiles
from llmpq.profile_request import ProfileRequest
from quantizer.kernel_choice import device_identity
from stage_server.device import ComputeDevice
from stage_server.layer_cache import CODE


class KeptProfile:
    """The profile of one device on one model, if it was measured before by this very code.

    Args:
        device: The device.
        request: What is measured.

    Raises:
        NotFoundError, UnavailableError: As ModelFiles.locate.
    """

    def __init__(self, device: ComputeDevice, request: ProfileRequest) -> None:
        self._cache = MeasurementCache(cache_directory() / "profiles")
        self._subject = {
            "fingerprint": ModelFiles.locate(request.model).fingerprint,
            "device": device_identity(device.torch_device),
            "compute_dtype": str(device.compute_dtype),
            "torch": torch.__version__,
            "code": code_digest(*CODE),
            "schemes": list(request.schemes),
            "group_size": request.group_size,
            "has_int8_kv_cache": request.has_int8_kv_cache,
            "busy_neighbours": request.busy_neighbours,
        }

    def load(self) -> tuple[LatencyPoint, ...] | None:
        """All of its points, in the order in which they were measured; None if they were not."""
        return self._cache.load(LatencyPoint, self._subject)

    def save(self, points: Sequence[LatencyPoint]) -> None:
        """Keeps all of its points, where the cache can be written."""
        with suppress(OSError):
            self._cache.save(self._subject, points)
