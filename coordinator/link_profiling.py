"""The links between the processes of a mesh, each measured once for as long as both its ends live.

Those within a host are kept on disk besides: a mesh that is started for a single call need not measure them again.
"""

import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

import llmpq
from coordinator.cluster import Member
from coordinator.corrections import device_kind
from coordinator.links import StageLink
from coordinator.neighbours import at_once, host_of, kept_busy
from coordinator.results import ResultRouter
from coordinator.status import Report
from llmpq.address import split_address
from llmpq.cache_dir import cache_directory
from llmpq.code_digest import code_digest
from llmpq.device import LinkProfile
from llmpq.errors import MeshError
from llmpq.measurements import MeasurementCache
from llmpq.rpc.link_probe import measure_link

log = structlog.get_logger(__name__)

#: A sender, by its lease; the coordinator has none.
_COORDINATOR = ""
#: How links are measured. Those of another design are measured again.
_DESIGN = 1

#: Sender, if that is not the coordinator, and receiver.
Pair = tuple[Member | None, Member]


class LinkProfiler:
    """Has every member send frames to every other one, and the coordinator to all.

    Args:
        router: Where the last stage of a pipeline sends to.
    """

    def __init__(self, router: ResultRouter) -> None:
        self._router = router
        self._cache = MeasurementCache(cache_directory() / "links")
        self._links: dict[tuple[str, str], LinkProfile] = {}

    async def links_to(
        self, members: Sequence[Member], model: str, report: Report, *, is_fresh: bool
    ) -> dict[Member, dict[str, Any]]:
        """For each member, the fields of its profile that say what handing it a frame takes.

        They are measured while those CPUs compute that can do so at once: processes then take frames up as in a run.
        What the coordinator hands to a first stage has come from a last one: its latency has both ways. The mean of all
        senders stands for one that is not known.

        Args:
            members: All of a plan's devices.
            model: What they compute layers of meanwhile.
            report: Told what is being done.
            is_fresh: Measure again what was measured before.
        """
        pairs = [(sender, receiver) for receiver in members for sender in (*members, None) if sender is not receiver]
        busy = at_once(members)
        if not is_fresh:
            self._recall(pairs, busy)
        missing = [pair for pair in pairs if is_fresh or _key(*pair) not in self._links]
        if missing:
            async with kept_busy(busy, model) as num_busy:
                for pair in missing:
                    await self._find(*pair, report)
            if num_busy == len(busy):
                self._keep(missing, busy)
        links: dict[Member, dict[str, Any]] = {}
        for receiver in members:
            found = [self._links[key] for pair in pairs if pair[1] is receiver and (key := _key(*pair)) in self._links]
            links[receiver] = {"links": tuple(found)} | _mean(found)
        return links

    def learn(self, stages: Sequence[Member], payloads: Sequence[int], transit_ns: int) -> None:
        """Takes how long a frame of a run was on its way, from the coordinator over the stages and back.

        A coordinator has answers to record besides. What the whole way took more or less than known is counted to the
        first link, half of it: a run may be disturbed.

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

    def _recall(self, pairs: Sequence[Pair], busy: Sequence[Member]) -> None:
        """Takes what was measured within a host between other processes like these."""
        for sender, receiver in pairs:
            key = _key(sender, receiver)
            if key not in self._links and self._is_within_host(sender, receiver):
                for link in self._cache.load(LinkProfile, _subject(sender, receiver, busy)) or ():
                    self._links[key] = replace(link, sender_id=sender.device_id if sender else "")

    def _keep(self, pairs: Sequence[Pair], busy: Sequence[Member]) -> None:
        for pair in pairs:
            if _key(*pair) in self._links and self._is_within_host(*pair):
                with suppress(OSError):
                    self._cache.save(_subject(*pair, busy), (self._links[_key(*pair)],))

    async def _find(self, sender: Member | None, receiver: Member, report: Report) -> None:
        """Measures a link, if it can be now: if not, a batch cannot be run over it either, and will say so."""
        report(f"Measuring the link from {sender.device_id if sender else 'the coordinator'} to {receiver.device_id}.")
        try:
            self._links[_key(sender, receiver)] = await self._measure(sender, receiver)
        except MeshError as error:
            log.warning("link.not_measured", receiver=receiver.device_id, error=error.message)

    def _is_within_host(self, sender: Member | None, receiver: Member) -> bool:
        own_host, _ = split_address(self._router.address, "address")
        return host_of(receiver) == (host_of(sender) if sender else own_host)

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


def _subject(sender: Member | None, receiver: Member, busy: Sequence[Member]) -> dict[str, Any]:
    """What a link within a host depends on: its ends, who computes meanwhile, and the code that frames go through."""
    ends = [(device_kind(end.description), sorted(end.cores)) if end else None for end in (sender, receiver)]
    computing = sorted([host_of(member), *sorted(member.cores)] for member in busy)
    code = code_digest(Path(llmpq.__file__))
    host = (platform.node(), host_of(receiver))
    return {"design": _DESIGN, "host": host, "ends": ends, "computing": computing, "code": code}


def _mean(links: Sequence[LinkProfile]) -> dict[str, int]:
    """The mean link, as the fields of a profile."""
    bandwidths = [link.bytes_per_s for link in links if link.bytes_per_s]
    return {
        "link_latency_ns": sum(link.latency_ns for link in links) // max(len(links), 1),
        "link_bytes_per_s": sum(bandwidths) // max(len(bandwidths), 1),
    }
