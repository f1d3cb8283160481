"""Kernel sets: which rates the kernels of a time or a system reach on each device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar, Literal

from pydantic import ConfigDict, NonNegativeFloat, PositiveFloat

from planner_svc.catalog.devices import DeviceSheet
from planner_svc.catalog.law import AttentionRates, Kernel

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class MeasuredKernel:
    """Rates fitted to measurements of one scheme on one device.

    Attributes:
        tflops: Rate of matrix products where rows are many.
        gb_per_s: Rate at which stored weights are read where rows are few.
        launch_ms: Time of a layer that does not depend on the work.
        source: Where the figures come from, if not from where those of the whole set do.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tflops: PositiveFloat
    gb_per_s: PositiveFloat
    launch_ms: NonNegativeFloat = 0.0
    source: str = ""


@dataclass(frozen=True)
class Efficiency:
    """Shares of a device's peaks that kernels reach.

    Attributes:
        flops: Of the peak of matrix products.
        memory: Of the bandwidth.
        source: Where the two come from; "assumed" where nobody measured.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    flops: PositiveFloat
    memory: PositiveFloat
    source: str


@dataclass(frozen=True)
class KernelPath:
    """One way to multiply at a scheme, on every device that can.

    Attributes:
        unit: "fp16" or "int8": whose peak counts.
        flops_share: Rate where rows are many, as a share of what 16-bit matrix products reach of their peak.
        expanded_bytes: Bytes of a weight that is expanded to memory first; 0 if none is.
        min_compute_capability: Devices below cannot run it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    unit: Literal["fp16", "int8"] = "fp16"
    flops_share: PositiveFloat = 1.0
    expanded_bytes: NonNegativeFloat = 0.0
    min_compute_capability: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class AttentionCost:
    """See `law.AttentionRates`; `flops_share` is of what matrix products reach, 0 where attention's are free."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    kv_passes: NonNegativeFloat
    score_bytes: NonNegativeFloat = 0.0
    flops_share: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class KernelSet:
    """What kernels reach: measured for a device and scheme, or else by shares of its peaks.

    Attributes:
        source: Where it comes from.
        attention: Cost of attention.
        measured: Rates by device and scheme; a device that is here has no others.
        measured_attention: Cost of attention on such a device, where it differs.
        efficiency: Shares by device, for devices without measured rates.
        launch_ms: Time of a layer that does not depend on the work, for these.
        paths: Ways to multiply by scheme, for these.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    source: str
    attention: AttentionCost
    measured: Mapping[str, Mapping[str, MeasuredKernel]] = field(default_factory=dict)
    measured_attention: Mapping[str, AttentionCost] = field(default_factory=dict)
    efficiency: Mapping[str, Efficiency] = field(default_factory=dict)
    launch_ms: NonNegativeFloat = 0.0
    paths: Mapping[str, tuple[KernelPath, ...]] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices that it knows."""
        return (*self.measured, *(name for name in self.efficiency if name not in self.measured))

    def kernels(self, name: str, sheet: DeviceSheet) -> dict[str, tuple[Kernel, ...]]:
        """The kernels of a device by scheme; schemes that it cannot run are left out."""
        if name in self.measured:
            return {
                scheme: (Kernel(found.launch_ms / 1e3, found.tflops * 1e12, found.gb_per_s * 1e9),)
                for scheme, found in self.measured[name].items()
            }
        kernels = {scheme: self._by_peaks(self.efficiency[name], sheet, paths) for scheme, paths in self.paths.items()}
        return {scheme: found for scheme, found in kernels.items() if found}

    def attention_rates(self, name: str, sheet: DeviceSheet) -> AttentionRates:
        """The cost of attention on a device."""
        cost = self.measured_attention.get(name, self.attention)
        reached = self.efficiency.get(name) if name not in self.measured else None
        return AttentionRates(
            memory_bytes_per_s=sheet.memory_gb_per_s * 1e9 * (reached.memory if reached else 1.0),
            score_bytes=cost.score_bytes,
            kv_passes=cost.kv_passes,
            flop_per_s=sheet.fp16_tflops * 1e12 * reached.flops * cost.flops_share
            if reached and cost.flops_share
            else inf,
        )

    def _by_peaks(self, reached: Efficiency, sheet: DeviceSheet, paths: tuple[KernelPath, ...]) -> tuple[Kernel, ...]:
        peaks = {"fp16": sheet.fp16_tflops, "int8": sheet.int8_tops}
        return tuple(
            Kernel(
                launch_s=self.launch_ms / 1e3,
                flop_per_s=peaks[path.unit] * 1e12 * reached.flops * path.flops_share,
                bytes_per_s=sheet.memory_gb_per_s * 1e9 * reached.memory,
                expanded_bytes=path.expanded_bytes,
            )
            for path in paths
            if peaks[path.unit] and sheet.compute_capability >= path.min_compute_capability
        )
