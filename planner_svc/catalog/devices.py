"""Data sheets of virtual devices."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveFloat

#: Share of a CUDA device's memory that a stage may use, before what CUDA and the allocator keep (LLM-PQ's planner).
_USABLE_SHARE = 0.95
_MIB = 2**20


@dataclass(frozen=True)
class DeviceSheet:
    """A device as `devices.yaml` describes it; see there for units and sources.

    Attributes:
        kind: "cuda" or "cpu".
        cpu_class: Instruction set of a CPU.
        num_threads: Threads of a CPU.
        compute_capability: Of a CUDA device: which kernels it can run.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    memory_gib: PositiveFloat
    memory_gb_per_s: PositiveFloat
    source: str
    kind: Literal["cuda", "cpu"] = "cuda"
    cpu_class: str = ""
    num_threads: NonNegativeInt = 0
    compute_capability: NonNegativeFloat = 0.0
    fp16_tflops: NonNegativeFloat = 0.0
    int8_tops: NonNegativeFloat = 0.0
    usd_per_h: NonNegativeFloat = 0.0
    pcie_gb_per_s: NonNegativeFloat = 0.0
    reserved_mib: NonNegativeInt = 1930

    @property
    def memory_bytes(self) -> int:
        """Memory that a program sees."""
        return round(self.memory_gib * 2**30)

    @property
    def budget_bytes(self) -> int:
        """Memory that a stage may use."""
        return round(self.memory_bytes * _USABLE_SHARE) - self.reserved_mib * _MIB

    @property
    def activation_bytes(self) -> int:
        """Bytes of an activation: CUDA devices compute in 16 bits, CPUs in 32."""
        return 2 if self.kind == "cuda" else 4
