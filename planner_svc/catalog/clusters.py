"""Virtual clusters: how many of which devices, in which hosts, linked how."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Link:
    """A way for activations.

    Attributes:
        gb_per_s: Bandwidth.
        latency_us: Time of a message without any bytes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    gb_per_s: PositiveFloat
    latency_us: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class Host:
    """Devices in one machine.

    Attributes:
        devices: How many of each.
        link: Between them.
        memory_gib: Host memory that weights and caches may be moved to, shared evenly by the devices.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    devices: Annotated[Mapping[str, PositiveInt], Field(min_length=1)]
    link: Link
    memory_gib: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class Place:
    """Where a device of a cluster is.

    Attributes:
        device_id: Its name in plans.
        name: Its name in the catalog.
        link: The link to it.
        host_memory_bytes: Its share of the memory of its host.
        usd_per_h: Its price; None for the catalog's.
    """

    device_id: str
    name: str
    link: Link
    host_memory_bytes: int
    usd_per_h: float | None


@dataclass(frozen=True)
class ClusterSheet:
    """A cluster as `clusters.yaml` describes it.

    Attributes:
        hosts: The machines.
        network: Between them; not needed for one.
        model: Model that it was used with, if any.
        usd_per_h: Prices of devices by name, instead of the catalog's.
        source: Where this comes from.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    hosts: Annotated[tuple[Host, ...], Field(min_length=1)]
    network: Link | None = None
    model: str = ""
    usd_per_h: Mapping[str, NonNegativeFloat] = field(default_factory=dict)
    source: str = ""

    @property
    def devices(self) -> tuple[Place, ...]:
        """Each device, numbered by kind over all hosts.

        A device of several hosts may be preceded by one of another host: its link is then the slower of the two.
        """
        counts: Counter[str] = Counter()
        found = []
        for host in self.hosts:
            host_memory_bytes = round(host.memory_gib * 2**30) // sum(host.devices.values())
            for name in chain.from_iterable([name] * count for name, count in host.devices.items()):
                device_id = f"{name}-{counts[name]}"
                counts[name] += 1
                price = self.usd_per_h.get(name)
                found.append(Place(device_id, name, self._link_to(host), host_memory_bytes, price))
        return tuple(found)

    def _link_to(self, host: Host) -> Link:
        links = [host.link, self.network] if len(self.hosts) > 1 and self.network else [host.link]
        return min(links, key=lambda link: link.gb_per_s)
