"""What a device is and how fast it is, as its stage server reports it."""

from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """Mirror of the message enum `Phase`."""

    PREFILL = "PHASE_PREFILL"
    DECODE = "PHASE_DECODE"


class ModelPart(StrEnum):
    """Mirror of the message enum `ModelPart`."""

    LAYER = "MODEL_PART_LAYER"
    EMBEDDING = "MODEL_PART_EMBEDDING"
    HEAD = "MODEL_PART_HEAD"
    FRAME = "MODEL_PART_FRAME"


@dataclass(frozen=True)
class DeviceDescription:
    """Mirror of the message `DeviceDescription`; see there for each field."""

    kind: str
    name: str
    cpu_class: str
    num_threads: int
    memory_total_bytes: int
    memory_budget_bytes: int
    schemes: tuple[str, ...]
    activation_bytes: int
    screens_head: bool = False


@dataclass(frozen=True)
class LatencyPoint:
    """Mirror of the message `LatencyPoint`; see there for each field."""

    part: ModelPart
    scheme: str
    phase: Phase
    num_sequences: int
    num_tokens: int
    past_tokens: int
    duration_ns: int


@dataclass(frozen=True)
class LinkProfile:
    """Mirror of the message `LinkProfile`; see there for each field."""

    sender_id: str = ""
    latency_ns: int = 0
    bytes_per_s: int = 0

    def transfer_s(self, num_bytes: float) -> float:
        """Seconds to hand over so many bytes: latency + bytes / bandwidth."""
        return self.latency_ns / 1e9 + (num_bytes / self.bytes_per_s if self.bytes_per_s else 0.0)


@dataclass(frozen=True)
class DeviceProfile:
    """Mirror of the message `DeviceProfile`; see there for each field."""

    device_id: str
    description: DeviceDescription
    points: tuple[LatencyPoint, ...] = field(default=())
    link_latency_ns: int = 0
    link_bytes_per_s: int = 0
    links: tuple[LinkProfile, ...] = ()
    host_memory_bytes: int = 0
    host_link_bytes_per_s: int = 0
    usd_per_h: float = 0.0

    def link_from(self, sender_id: str) -> LinkProfile:
        """The link from a device, or the coordinator (empty); the one of any sender where that was not measured."""
        anybody = LinkProfile(sender_id, self.link_latency_ns, self.link_bytes_per_s)
        return next((link for link in self.links if link.sender_id == sender_id), anybody)
