"""What runs teach about profiles: the ratio of measured to predicted times of a kind of device, in each phase."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import geometric_mean
from typing import Any

from llmpq.device import DeviceDescription, LatencyPoint, ModelPart, Phase
from llmpq.measurements import MeasurementCache
from llmpq.model import ModelShape

#: Share of what a run shows that is taken over: it may have been disturbed, but hosts change.
_GAIN = 0.5
#: What the factors are on. Those of another design are learned anew.
_DESIGN = 3
#: A run that was off by more than this says nothing about the device.
_MAX_RATIO = 3.0


@dataclass(frozen=True)
class LatencyCorrection:
    """Factors on the times in a profile.

    What is outside the layers is corrected with them, because runs are measured by stage: were it left out, the layers
    of a stage that has few would be blamed for all, again after every run. It counts most in decode steps.

    Attributes:
        prefill: Of layers in prefill.
        decode: Of all else.
    """

    prefill: float = 1.0
    decode: float = 1.0

    def learned(self, ratios: Mapping[Phase, float]) -> "LatencyCorrection":
        """After a run that was predicted with this correction; a ratio is measured over predicted."""
        return LatencyCorrection(
            prefill=self.prefill * ratios.get(Phase.PREFILL, 1.0) ** _GAIN,
            decode=self.decode * ratios.get(Phase.DECODE, 1.0) ** _GAIN,
        )

    def applied(self, point: LatencyPoint) -> LatencyPoint:
        """The point as it is to be planned with."""
        is_prefill = point.part is ModelPart.LAYER and point.phase is Phase.PREFILL
        factor = self.prefill if is_prefill else self.decode
        return replace(point, duration_ns=max(round(point.duration_ns * factor), 1))


class CorrectionStore:
    """Corrections by kind of device and shape of model, beside the profiles.

    Args:
        cache: Where they are kept.
    """

    def __init__(self, cache: MeasurementCache) -> None:
        self._cache = cache

    def of(self, device: DeviceDescription, shape: ModelShape) -> LatencyCorrection:
        """The correction; none where no batch has run yet."""
        return (self._cache.load(LatencyCorrection, _subject(device, shape)) or (LatencyCorrection(),))[0]

    def learn(self, device: DeviceDescription, shape: ModelShape, ratios: Mapping[Phase, float]) -> None:
        """Takes measured over predicted times of a run."""
        self._cache.save(_subject(device, shape), (self.of(device, shape).learned(ratios),))

    def forget(self, device: DeviceDescription, shape: ModelShape) -> None:
        """Starts again, as after a new profile."""
        self._cache.save(_subject(device, shape), (LatencyCorrection(),))


def mean_ratios(of_stages: Sequence[Mapping[Phase, float]]) -> dict[Phase, float]:
    """The geometric means of the stages of one run on devices of one kind, but of those that were far off."""
    found = {phase: [ratios[phase] for ratios in of_stages if phase in ratios] for phase in Phase}
    credible = {
        phase: [ratio for ratio in ratios if 1 / _MAX_RATIO <= ratio <= _MAX_RATIO] for phase, ratios in found.items()
    }
    return {phase: geometric_mean(ratios) for phase, ratios in credible.items() if ratios}


def device_kind(device: DeviceDescription) -> dict[str, Any]:
    """What latencies depend on of a device: not on its memory."""
    return {name: value for name, value in asdict(device).items() if not name.startswith("memory_")}


def _subject(device: DeviceDescription, shape: ModelShape) -> dict[str, Any]:
    return {"design": _DESIGN, "device": device_kind(device), "shape": asdict(shape)}
