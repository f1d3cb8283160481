"""The links between the processes of a mesh, each measured once for as long as both its ends live."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import structlog

from coordinator.cluster import Member
from coordinator.links import StageLink
from coordinator.results import ResultRouter
from coordinator.status import Report
from llmpq.device import LinkProfile
from llmpq.errors import MeshError
from llmpq.rpc.link_probe import measure_link

log = structlog.get_logger(__name__)

#: A sender, by its lease; the coordinator has none.
_COORDINATOR = ""


class LinkProfiler:
    """Has every member send frames to every other one, and the coordinator to all.

    Args:
        router: Where the last stage of a pipeline sends to.
    """

    def __init__(self, router: ResultRouter) -> None:
        self._router = router
        self._links: dict[tuple[str, str], LinkProfile] = {}

    async def links_to(self, members: Sequence[Member], report: Report) -> dict[Member, dict[str, Any]]:
        """For each member, the fields of its profile that say what handing it a frame takes.

        What the coordinator hands to a first stage has come from a last one: its latency has both ways. The mean of all
        senders stands for one that is not known.
        """
        links: dict[Member, dict[str, Any]] = {}
        for receiver in members:
            found = [await self._link(sender, receiver, report) for sender in members if sender is not receiver]
            found.append(await self._link(None, receiver, report))
            links[receiver] = {"links": tuple(link for link in found if link)} | _mean([link for link in found if link])
        return links

    def learn(self, stages: Sequence[Member], payloads: Sequence[int], transit_ns: int) -> None:
        """Takes how long a frame of a run was on its way, from the coordinator over the stages and back.

        Processes that compute, and a coordinator that has answers to record, take frames up later than idle ones. What
        the whole way took more or less than known is counted to the first link, half of it: a run may be disturbed.

        Args:
            stages: Those that it went through.
            payloads: Bytes that each of them received.
            transit_ns: The sum over all hops.
        """
        way = (None, *stages)
        keys = [_key(sender, receiver) for sender, receiver in zip(way, stages, strict=False)]
        if all(key in self._links for key in keys):
            links = [self._links[key] for key in keys]
            known_s = sum(link.transfer_s(num_bytes) for link, num_bytes in zip(links, payloads, strict=True))
            latency_ns = max(links[0].latency_ns + round((transit_ns - known_s * 1e9) / 2), 0)
            self._links[keys[0]] = replace(links[0], latency_ns=latency_ns)

    async def _link(self, sender: Member | None, receiver: Member, report: Report) -> LinkProfile | None:
        """A link; None if it cannot be measured now, for then a batch cannot be run over it either, and will say so."""
        key = _key(sender, receiver)
        if key not in self._links:
            report(
                f"Measuring the link from {sender.device_id if sender else 'the coordinator'} to {receiver.device_id}."
            )
            try:
                self._links[key] = await self._measure(sender, receiver)
            except MeshError as error:
                log.warning("link.not_measured", receiver=receiver.device_id, error=error.message)
        return self._links.get(key)

    async def _measure(self, sender: Member | None, receiver: Member) -> LinkProfile:
        if sender:
            async with StageLink.opened(sender) as stage:
                return await stage.link_to(receiver.address)
        there = await measure_link("", receiver.address)
        async with StageLink.opened(receiver) as stage:
            back = await stage.link_to(self._router.address)
        return LinkProfile("", there.latency_ns + back.latency_ns, there.bytes_per_s)


def _key(sender: Member | None, receiver: Member) -> tuple[str, str]:
    return sender.lease_id if sender else _COORDINATOR, receiver.lease_id


def _mean(links: Sequence[LinkProfile]) -> dict[str, int]:
    """The mean link, as the fields of a profile."""
    bandwidths = [link.bytes_per_s for link in links if link.bytes_per_s]
    return {
        "link_latency_ns": sum(link.latency_ns for link in links) // max(len(links), 1),
        "link_bytes_per_s": sum(bandwidths) // max(len(bandwidths), 1),
    }
