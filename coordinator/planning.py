"""From a model, a workload and the members to a plan."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from coordinator.cluster import Member
from coordinator.fidelity import FidelityMeter
from coordinator.link_profiling import LinkProfiler
from coordinator.links import PlanProgress, create_plan
from coordinator.neighbours import HostTurns, kept_busy, neighbours_of
from coordinator.omega import REFERENCE_SCHEME
from coordinator.plan_options import check_layers
from coordinator.profiling import DeviceProfiler, ProfiledModel
from coordinator.rating import LayerRater
from coordinator.results import ResultRouter
from coordinator.status import Report
from llmpq.batch import PreviewedPlan
from llmpq.device import DeviceProfile, Phase
from llmpq.errors import PreconditionError
from llmpq.fidelity import FidelityResult
from llmpq.frames import hidden_row_bytes
from llmpq.measurements import MeasurementCache
from llmpq.model import pinned, read_shape
from llmpq.plan import STRATEGIES, LayerSensitivity, LengthBucket, Plan, PlanningProblem, PlanOptions
from llmpq.schemes import SCHEMES
from llmpq.stored_layers import options_as_stored, read_stored_layers
from llmpq.trace import FrameTrace, transits_ns


@dataclass(frozen=True)
class Work:
    """What is to be planned for.

    Attributes:
        model: A directory or a .gguf file.
        workload: Histogram of lengths.
        options: Objective and limits.
    """

    model: str
    workload: tuple[LengthBucket, ...]
    options: PlanOptions


class Planning:
    """Measures what the planner needs to know, each thing once, and asks it.

    Args:
        planner_address: host:port of the planner.
        state: Directory of what was measured before.
        router: Where results come in.
    """

    def __init__(self, planner_address: str, state: Path, router: ResultRouter) -> None:
        self.planner_address = planner_address
        self._cache = MeasurementCache(state / "measurements")
        self._rater = LayerRater()
        self._router = router
        self._links = LinkProfiler(router)
        self._turns = HostTurns()
        self._profiler = DeviceProfiler(self._cache, self._links, self._turns)

    async def plan(self, work: Work, members: Sequence[Member], report: Report) -> Plan:
        """The plan for some work on the members.

        Raises:
            PreconditionError: There are no devices that could be used, or no plan fits them.
            MeshError: As ProfileLayers, MeasureSensitivity and CreatePlan.
        """
        return await self._create(await self.problem(work, members, report), report)

    async def preview(
        self,
        work: Work,
        members: Sequence[Member],
        strategies: Sequence[str],
        report: Report,
    ) -> list[PreviewedPlan]:
        """What each strategy comes to; one that finds no plan says why. Raises as `plan` while devices are measured."""
        problem = await self.problem(work, members, report)
        previews = []
        for strategy in strategies or (work.options.strategy or STRATEGIES[0],):
            asked = replace(problem, options=replace(problem.options, strategy=strategy))
            try:
                previews.append(PreviewedPlan(strategy, error="", plan=await self._create(asked, report)))
            except PreconditionError as error:
                previews.append(PreviewedPlan(strategy, error=error.message))
        return previews

    async def problem(self, work: Work, members: Sequence[Member], report: Report) -> PlanningProblem:
        """What the planner is asked, with all that had to be measured for it.

        Raises:
            PreconditionError: There are no devices that could be used.
            MeshError: As ProfileLayers and MeasureSensitivity.
        """
        work = await asyncio.to_thread(_as_stored, work)
        usable = _usable(members, work.options)
        shape = await asyncio.to_thread(read_shape, work.model)
        check_layers(work.options, shape)  # before minutes of measuring
        group_size, has_int8_kv_cache = work.options.effective_group_size, work.options.has_int8_kv_cache
        profiled = ProfiledModel(work.model, shape, group_size, has_int8_kv_cache)
        profiles = await self._profiler.profiles(usable, profiled, report)
        schemes = sorted({scheme for member in profiles for scheme in usable[member]})
        sensitivities = await self._sensitivities(tuple(profiles), work, schemes, report)
        devices = tuple(profiles.values())
        return PlanningProblem(work.model, shape, devices, work.workload, sensitivities, work.options)

    async def rate(
        self,
        model: str,
        options: PlanOptions,
        members: Sequence[Member],
        report: Report,
    ) -> tuple[LayerSensitivity, ...]:
        """Normalized sensitivities of all layers, at the allowed schemes, or at all that members can run.

        Raises:
            PreconditionError: There are no devices, or none for a scheme that is to be rated.
            NotFoundError: The model is not there.
            MeshError: As MeasureSensitivity.
        """
        runnable = {scheme for member in members for scheme in member.description.schemes}
        schemes = options.allowed_schemes or tuple(scheme for scheme in SCHEMES if scheme in runnable)
        if not schemes:
            raise _no_devices(members, options)
        model = await asyncio.to_thread(pinned, model)
        return await self._rater.rate(model, schemes, options, members, report)

    async def profile(
        self,
        model: str,
        options: PlanOptions,
        members: Sequence[Member],
        report: Report,
        *,
        is_fresh: bool,
    ) -> tuple[DeviceProfile, ...]:
        """The profiles that plans for a model are made from.

        Args:
            model: A directory or a .gguf file.
            options: Of these count the group size, the type of the cache and the allowed schemes.
            members: The devices.
            report: Told what is being done.
            is_fresh: Measure again what was measured before.

        Raises:
            PreconditionError: There are no devices that can run any of the allowed schemes.
            MeshError: As ProfileLayers.
        """
        return tuple((await self._profiles(model, options, members, report, is_fresh=is_fresh)).values())

    async def learn(
        self, plan: Plan, stages: Sequence[Member], ratios: Sequence[Mapping[Phase, float]], frame: FrameTrace | None
    ) -> None:
        """Lets plans to come profit from a run.

        Args:
            plan: What ran.
            stages: The member behind each of its stages.
            ratios: Of each stage, measured over predicted times.
            frame: One of its decode frames that was not held up on its way, if it had any.
        """
        shape = await asyncio.to_thread(read_shape, plan.model)
        if frame is not None:
            row_bytes = [
                hidden_row_bytes(
                    shape.hidden_size, member.description.activation_bytes, is_int8=plan.has_int8_activations
                )
                for member in stages[:-1]
            ]
            payloads = (0, *(frame.num_rows * num_bytes for num_bytes in row_bytes))
            self._links.learn(stages, payloads, sum(transits_ns(frame)))
        self._profiler.learn([member.description for member in stages], shape, ratios)

    async def fidelity(
        self,
        model: str,
        options: PlanOptions,
        members: Sequence[Member],
        report: Report,
        *,
        num_workloads: int,
        seed: int,
    ) -> AsyncIterator[FidelityResult]:
        """Compares the planner's predictions with random work on each device in turn.

        Raises:
            MeshError: As `profile`, and as LoadStage.
        """
        profiles = await self._profiles(model, options, members, report)
        model = await asyncio.to_thread(pinned, model)
        shape = await asyncio.to_thread(read_shape, model)
        for member, profile in profiles.items():
            schemes, group_size = _usable_schemes(member, options), options.effective_group_size
            meter = FidelityMeter(
                member, profile, schemes, model, shape, group_size, self.planner_address, self._router
            )
            neighbours = neighbours_of(member, profiles)
            async with (
                self._turns.on((member,)),
                kept_busy(neighbours, model),
                aclosing(meter.results(num_workloads, seed)) as results,
            ):
                async for result in results:
                    yield result

    async def _profiles(
        self, model: str, options: PlanOptions, members: Sequence[Member], report: Report, *, is_fresh: bool = False
    ) -> dict[Member, DeviceProfile]:
        usable = _usable(members, options)
        model = await asyncio.to_thread(pinned, model)
        shape = await asyncio.to_thread(read_shape, model)
        profiled = ProfiledModel(model, shape, options.effective_group_size, options.has_int8_kv_cache)
        return await self._profiler.profiles(usable, profiled, report, is_fresh=is_fresh)

    async def _sensitivities(
        self,
        members: Sequence[Member],
        work: Work,
        schemes: Sequence[str],
        report: Report,
    ) -> tuple[LayerSensitivity, ...]:
        """Normalized sensitivities of all layers; none where there is nothing to choose, or no device for the unit."""
        has_choice = len(schemes) > 1 and not work.options.layer_schemes
        if not has_choice or not any(REFERENCE_SCHEME in member.description.schemes for member in members):
            return ()
        return await self._rater.rate(work.model, schemes, work.options, members, report)

    async def _create(self, problem: PlanningProblem, report: Report) -> Plan:
        report(f"Asking the planner at {self.planner_address}.")

        def on_progress(progress: PlanProgress) -> None:
            report(f"Planning: {progress.candidates_done} of {progress.candidates_total} candidates examined.")

        return await create_plan(self.planner_address, problem, on_progress)


def workload_of(lengths: Iterable[tuple[int, int]]) -> tuple[LengthBucket, ...]:
    """The histogram of (prompt tokens, output tokens) pairs."""
    counts = Counter(lengths)
    return tuple(LengthBucket(prompt, output, count) for (prompt, output), count in sorted(counts.items()))


def _as_stored(work: Work) -> Work:
    """The work with its model pinned, and if that is quantized already, with each layer at what it is stored at."""
    model = pinned(work.model)
    stored = read_stored_layers(model)
    options = options_as_stored(work.options, stored, work.model) if stored else work.options
    return replace(work, model=model, options=options)


def _usable(members: Sequence[Member], options: PlanOptions) -> dict[Member, list[str]]:
    """The members that can run any of the allowed schemes, and which.

    Raises:
        PreconditionError: There are none.
    """
    usable = {member: schemes for member in members if (schemes := _usable_schemes(member, options))}
    if not usable:
        raise _no_devices(members, options)
    return usable


def _usable_schemes(member: Member, options: PlanOptions) -> list[str]:
    allowed = options.usable_schemes
    return sorted(scheme for scheme in member.description.schemes if not allowed or scheme in allowed)


def _no_devices(members: Sequence[Member], options: PlanOptions) -> PreconditionError:
    if not members:
        return PreconditionError("There are no devices: start a stage server.", reason="NO_DEVICES", subject="cluster")
    names = ", ".join(member.device_id for member in members)
    schemes = ", ".join(options.usable_schemes)
    return PreconditionError(
        f"None of the devices ({names}) can run any of the allowed schemes ({schemes}). Allow others.",
        reason="NO_DEVICES",
        subject="plan_options.allowed_schemes",
    )
