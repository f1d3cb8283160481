"""Which stage servers are members, and for how long."""

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Never

import structlog

from coordinator.changes import Changes
from llmpq.device import DeviceDescription
from llmpq.errors import ConflictError, UnavailableError

log = structlog.get_logger(__name__)

#: Heartbeats that fit into one time to live.
_HEARTBEATS_PER_TTL = 3


@dataclass(frozen=True)
class Member:
    """A stage server that holds a lease.

    Attributes:
        device_id: Name of its device, unique among the members.
        address: host:port of its services.
        description: What the device is.
        cores: Those of its host that it computes on, if it is a CPU that is held to some.
        lease_id: A new one each time it registers.
        register_time: When it did.
    """

    device_id: str
    address: str
    description: DeviceDescription
    cores: frozenset[int] = frozenset()
    lease_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    register_time: datetime = field(default_factory=lambda: datetime.now(UTC))


class Cluster:
    """The members.

    Args:
        lease_ttl_s: A stage that is silent for this long is no member any more.

    Attributes:
        changes: Told of every member that comes or goes.
    """

    def __init__(self, lease_ttl_s: float) -> None:
        self.lease_ttl_s = lease_ttl_s
        self.changes = Changes()
        self._members: dict[str, Member] = {}

    @property
    def heartbeat_interval_s(self) -> float:
        """How often a stage must say that it is alive."""
        return self.lease_ttl_s / _HEARTBEATS_PER_TTL

    @property
    def members(self) -> tuple[Member, ...]:
        """All members by device_id."""
        return tuple(member for _, member in sorted(self._members.items()))

    def is_member(self, member: Member) -> bool:
        """Whether the lease that `member` was made for still lives."""
        return self._members.get(member.device_id) is member

    @contextmanager
    def joined(self, member: Member) -> Iterator[None]:
        """Makes a stage a member for the length of the block.

        A stage that registers again at the same address takes over from itself: its old stream is dead, even if nobody
        has noticed yet.

        Raises:
            ConflictError: Another live stage has that device_id.
        """
        rival = self._members.get(member.device_id)
        if rival and rival.address != member.address:
            raise ConflictError(
                f"Device '{member.device_id}' is registered from {rival.address} already. Start this stage with "
                "another device name, or stop that one.",
                subject=member.device_id,
            )
        self._members[member.device_id] = member
        self.changes.notify()
        log.info("stage.joined", device=member.device_id, address=member.address)
        try:
            yield
        finally:
            if self.is_member(member):
                del self._members[member.device_id]
                self.changes.notify()
                log.warning("stage.left", device=member.device_id, address=member.address)

    async def fail_when_left(self, stages: Sequence[Member]) -> Never:
        """Waits for as long as all these stages are members.

        Raises:
            UnavailableError: One has left.
        """
        while True:
            version = self.changes.version
            for stage in stages:
                if not self.is_member(stage):
                    message = f"Stage {stage.device_id} at {stage.address} has left the cluster."
                    raise UnavailableError(message, subject=stage.device_id)
            await self.changes.after(version)

    async def quiet(self, interval_s: float) -> None:
        """Waits until nobody has come or gone for the length of the interval."""
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(interval_s):
                    await self.changes.after(self.changes.version)

    async def settled(self, device_ids: AbstractSet[str], grace_s: float) -> None:
        """Waits until all these devices are members, but not longer than the grace."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while not device_ids <= self._members.keys():
                    await self.changes.after(self.changes.version)
