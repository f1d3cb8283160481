"""Virtual clusters: how many of which devices, in which hosts, linked how."""

from collections.abc import Mapping
from dataclasses import dataclass
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
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    devices: Annotated[Mapping[str, PositiveInt], Field(min_length=1)]
    link: Link


@dataclass(frozen=True)
class ClusterSheet:
    """A cluster as `clusters.yaml` describes it.

    Attributes:
        hosts: The machines.
        network: Between them; not needed for one.
        model: Model that it was used with, if any.
        source: Where this comes from.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    hosts: Annotated[tuple[Host, ...], Field(min_length=1)]
    network: Link | None = None
    model: str = ""
    source: str = ""

    @property
    def devices(self) -> tuple[tuple[str, str, Link], ...]:
        """(device_id, name of the device, link to it) of each device, numbered by kind over all hosts.

        A device of several hosts may be preceded by one of another host: its link is then the slower of the two.
        """
        counts: dict[str, int] = {}
        found = []
        for host in self.hosts:
            for name, count in host.devices.items():
                for _ in range(count):
                    number = counts.get(name, 0)
                    counts[name] = number + 1
                    found.append((f"{name}-{number}", name, self._link_to(host)))
        return tuple(found)

    def _link_to(self, host: Host) -> Link:
        links = [host.link, self.network] if len(self.hosts) > 1 and self.network else [host.link]
        return min(links, key=lambda link: link.gb_per_s)
