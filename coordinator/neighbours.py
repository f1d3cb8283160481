"""Devices of one host share its memory: how fast one is in a run shows only while the others compute as well."""

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


def neighbours_of(member: Member, members: Iterable[Member]) -> tuple[Member, ...]:
    """Those of the members that can compute while this one does: on the same host, each on cores that no other has.

    What is not held to cores, and so no GPU, has none and is none.
    """
    taken, found = set(member.cores), []
    for other in members if taken else ():
        if other.cores and taken.isdisjoint(other.cores) and host_of(other) == host_of(member):
            taken |= other.cores
            found.append(other)
    return tuple(found)


@asynccontextmanager
async def kept_busy(members: Sequence[Member], model: str) -> AsyncIterator[None]:
    """Has them compute while the block runs. One that cannot is left alone: it may be computing already.

    Args:
        members: Stage servers.
        model: Of which they compute layers.
    """
    async with AsyncExitStack() as stack:
        for member in members:
            try:
                stage = await stack.enter_async_context(StageLink.opened(member))
                await stack.enter_async_context(stage.kept_busy(model))
            except MeshError as error:
                log.info("neighbour.not_kept_busy", device=member.device_id, reason=error.reason)
        yield
