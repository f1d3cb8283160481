"""Devices of one host share its memory: how fast one is in a run shows only while the others compute as well."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from coordinator.cluster import Member
from coordinator.links import StageLink
from llmpq.address import split_address
from llmpq.errors import MeshError

log = structlog.get_logger(__name__)


def host_of(member: Member) -> str:
    """The host that its stage server says to be on."""
    return split_address(member.address, "address")[0]


def at_once(members: Iterable[Member]) -> tuple[Member, ...]:
    """Those that can compute at the same time: held to cores, and so no GPUs, each on some that none before it has."""
    taken: set[tuple[str, int]] = set()
    found = []
    for member in members:
        cores = {(host_of(member), core) for core in member.cores}
        if cores and taken.isdisjoint(cores):
            taken |= cores
            found.append(member)
    return tuple(found)


def neighbours_of(member: Member, members: Iterable[Member]) -> tuple[Member, ...]:
    """Those of the members that can compute on the same host while this one does."""
    others = (other for other in members if host_of(other) == host_of(member))
    return at_once((member, *others))[1:] if member.cores else ()


class HostTurns:
    """Who measures on a host has it for itself: two who kept each other's devices busy would wait for ever."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @asynccontextmanager
    async def on(self, members: Iterable[Member]) -> AsyncIterator[None]:
        """Waits for the turn on all hosts of the members, and has it while the block runs."""
        async with AsyncExitStack() as stack:
            for host in sorted(set(map(host_of, members))):  # in one order, so that nobody waits in a circle
                await stack.enter_async_context(self._locks[host])
            yield


@asynccontextmanager
async def kept_busy(members: Sequence[Member], model: str) -> AsyncIterator[int]:
    """Has them compute while the block runs, and gives how many do. One that cannot is left alone.

    Args:
        members: Stage servers.
        model: Of which they compute layers.
    """
    num_busy = 0
    async with AsyncExitStack() as stack:
        for member in members:
            try:
                stage = await stack.enter_async_context(StageLink.opened(member))
                await stack.enter_async_context(stage.kept_busy(model))
                num_busy += 1
            except MeshError as error:
                log.warning("neighbour.not_kept_busy", device=member.device_id, reason=error.reason)
        yield num_busy
