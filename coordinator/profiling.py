"""What the planner knows of the devices: how fast they are on a model, and the links between them."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import structlog

from coordinator.cluster import Member
from coordinator.corrections import CorrectionStore, device_kind, mean_ratios
from coordinator.link_profiling import LinkProfiler
from coordinator.links import StageLink
from coordinator.neighbours import HostTurns, kept_busy, neighbours_of
from coordinator.status import Report, counting
from llmpq.device import DeviceDescription, DeviceProfile, LatencyPoint, Phase
from llmpq.errors import UnavailableError
from llmpq.measurements import MeasurementCache
from llmpq.model import ModelShape
from llmpq.profile_request import ProfileRequest

log = structlog.get_logger(__name__)

#: Which points a profile has, and what a layer does. A profile of another design is measured again.
_DESIGN = 8


@dataclass(frozen=True)
class ProfiledModel:
    """What is profiled on a device.

    Attributes:
        model: The model, as stages are given it.
        shape: Its shape, all that latencies depend on.
        group_size: Of schemes with groups.
        has_int8_kv_cache: Keys and values are cached as int8.
    """

    model: str
    shape: ModelShape
    group_size: int
    has_int8_kv_cache: bool


class DeviceProfiler:
    """Profiles devices, each once for a shape of model.

    Args:
        cache: Of what was measured before.
        links: Measures the links.
        turns: Who measures when.
    """

    def __init__(self, cache: MeasurementCache, links: LinkProfiler, turns: HostTurns) -> None:
        self._cache = cache
        self._links = links
        self._turns = turns
        self._corrections = CorrectionStore(cache)

    async def profiles(
        self,
        usable: Mapping[Member, Sequence[str]],
        model: ProfiledModel,
        report: Report,
        *,
        is_fresh: bool = False,
    ) -> dict[Member, DeviceProfile]:
        """The profiles of the devices that can be reached: one that cannot be must not keep the others from working.

        Devices of one host take turns, each while its neighbours are kept busy.

        Args:
            usable: The members, and the schemes to profile each of them at.
            model: What to profile.
            report: Told what is being done.
            is_fresh: Measure again what was measured before.

        Raises:
            UnavailableError: None can be reached.
            MeshError: As ProfileLayers.
        """

        async def in_turn(member: Member, schemes: Sequence[str]) -> DeviceProfile:
            async with self._turns.on((member,)):
                neighbours = neighbours_of(member, usable)
                return await self._profile(member, neighbours, schemes, model, report, is_fresh=is_fresh)

        turns = [asyncio.ensure_future(_unless_unavailable(in_turn(*item))) for item in usable.items()]
        try:
            outcomes = await asyncio.gather(*turns)
        finally:  # of those that are left, should one have failed otherwise
            for turn in turns:
                turn.cancel()
            await asyncio.gather(*turns, return_exceptions=True)
        profiles: dict[Member, DeviceProfile] = {}
        for member, outcome in zip(usable, outcomes, strict=True):
            if isinstance(outcome, DeviceProfile):
                profiles[member] = outcome
            else:
                log.warning("device.left_out", device=member.device_id, error=outcome.message)
                report(f"Planning without device {member.device_id}: {outcome.message}")
        if not profiles:
            raise next(outcome for outcome in outcomes if isinstance(outcome, UnavailableError))
        async with self._turns.on(profiles):
            links = await self._links.links_to(tuple(profiles), model.model, report, is_fresh=is_fresh)
        return {member: replace(profile, **links[member]) for member, profile in profiles.items()}

    async def _profile(
        self,
        member: Member,
        neighbours: Sequence[Member],
        schemes: Sequence[str],
        model: ProfiledModel,
        report: Report,
        *,
        is_fresh: bool,
    ) -> DeviceProfile:
        """Latencies of a device, which depend on its kind and the model's shape, not on its name or the weights.

        They are as measured, corrected by what runs have shown since. Points of other schemes come along where they are
        known: longer contexts are measured at one scheme only, and what they cost holds for all.
        """
        device = device_kind(member.description)
        subject = {"design": _DESIGN, "device": device, "shape": asdict(model.shape), "group_size": model.group_size}
        subject |= {"has_int8_kv_cache": model.has_int8_kv_cache, "busy_neighbours": len(neighbours)}
        parts = {
            scheme: self._cache.load(LatencyPoint, subject | {"scheme": scheme})
            for scheme in ("", *member.description.schemes)
        }
        missing = [scheme for scheme in schemes if is_fresh or parts[scheme] is None or parts[""] is None]
        if missing:
            request = ProfileRequest(
                model.model,
                tuple(missing),
                model.group_size,
                is_fresh=is_fresh,
                has_int8_kv_cache=model.has_int8_kv_cache,
                busy_neighbours=len(neighbours),
            )
            found = await _measured(member, neighbours, request, report)
            for scheme in ("", *missing):
                parts[scheme] = tuple(point for point in found if point.scheme == scheme)
                self._cache.save(subject | {"scheme": scheme}, parts[scheme] or ())
            if is_fresh:
                self._corrections.forget(member.description, model.shape)
        correction = self._corrections.of(member.description, model.shape)
        points = tuple(correction.applied(point) for part in parts.values() for point in part or ())
        return DeviceProfile(member.device_id, member.description, points)

    def learn(
        self, stages: Sequence[DeviceDescription], shape: ModelShape, ratios: Sequence[Mapping[Phase, float]]
    ) -> None:
        """Lets plans to come profit from a run: `ratios` are measured over predicted times, of each of its stages."""
        of_kind: dict[str, list[int]] = defaultdict(list)
        for number, description in enumerate(stages):
            of_kind[repr(device_kind(description))].append(number)
        for numbers in of_kind.values():
            self._corrections.learn(stages[numbers[0]], shape, mean_ratios([ratios[number] for number in numbers]))


async def _measured(
    member: Member, neighbours: Sequence[Member], request: ProfileRequest, report: Report
) -> tuple[LatencyPoint, ...]:
    """What the stage has kept of an earlier profile, or else measures while its neighbours are kept busy."""
    doing = f"Measuring device {member.device_id} on a layer of the model"
    report(f"{doing}.")
    async with StageLink.opened(member) as stage:
        kept = () if request.is_fresh else await stage.profile(replace(request, only_kept=True), lambda *_: None)
        if kept:
            return kept
        async with kept_busy(neighbours, request.model) as num_busy:
            beside = replace(request, busy_neighbours=num_busy)
            return await stage.profile(beside, counting(report, doing, "points"))


async def _unless_unavailable(profiling: Awaitable[DeviceProfile]) -> DeviceProfile | UnavailableError:
    try:
        return await profiling
    except UnavailableError as error:
        return error
