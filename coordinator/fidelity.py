"""Predicted against measured, on micro-batches that no profile has: through a stage's own executor."""

import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from coordinator.cluster import Member
from coordinator.fidelity_workloads import SliceWorkload, draw_workload
from coordinator.links import StageLink, evaluate_plan
from coordinator.results import ResultRouter
from coordinator.slice_run import NUM_NEW_TOKENS, SliceRun
from llmpq.device import DeviceProfile
from llmpq.fidelity import FidelityResult
from llmpq.model import ModelShape
from llmpq.plan import LayerPrecision, LengthBucket, Plan, PlanningProblem, StagePlan
from llmpq.schemes import SCHEMES

#: More than any device has, and than any plan takes.
_UNLIMITED_BYTES = 10**15
#: The slice is predicted as a stage between two others on devices of the same profile.
_PLACES = ("before", "slice", "after")


@dataclass(frozen=True)
class FidelityMeter:
    """Measures one device on random slices of a model.

    Args:
        member: The stage server.
        profile: What the planner knows of it.
        schemes: What layers may have.
        model: The model, as stages are given it.
        shape: Its shape.
        group_size: Of schemes with groups.
        planner_address: host:port of the planner.
        router: Where results come in.
    """

    member: Member
    profile: DeviceProfile
    schemes: Sequence[str]
    model: str
    shape: ModelShape
    group_size: int
    planner_address: str
    router: ResultRouter

    async def results(self, num_workloads: int, seed: int) -> AsyncGenerator[FidelityResult, None]:
        """Draws workloads and measures them one after another; what is drawn depends on seed and device alone.

        Raises:
            MeshError: As LoadStage and EvaluatePlan.
        """
        source = random.Random(f"{seed} {self.member.device_id}")  # noqa: S311 not for secrets
        schemes = sorted(self.schemes, key=list(SCHEMES).index)
        max_context = self.shape.max_positions - NUM_NEW_TOKENS
        for _ in range(num_workloads):
            yield await self._measure(draw_workload(source, self.shape, schemes, max_context))

    async def _measure(self, workload: SliceWorkload) -> FidelityResult:
        expected = await self._predicted(workload)
        async with StageLink.opened(self.member) as stage:
            run = SliceRun(workload, self.shape, self.router)
            async for _ in stage.load(run.stage_load(self.model, self._precisions(workload.schemes))):
                pass
            prefill_ms, decode_ms = await run.times_ms(self.member.address)
            process = await stage.process_memory()
            await stage.unload()
        return FidelityResult(
            device_id=self.member.device_id,
            first_layer=workload.first_layer,
            schemes=workload.schemes,
            has_head=workload.end_layer == self.shape.num_layers,
            prefill_sequences=workload.prefill_sequences,
            decode_sequences=workload.decode_sequences,
            prompt_tokens=workload.prompt_tokens,
            predicted_prefill_ms=expected.prefill_ms,
            measured_prefill_ms=prefill_ms,
            predicted_decode_ms=expected.decode_ms,
            measured_decode_ms=decode_ms,
            predicted_bytes=process.runtime_bytes + expected.memory.used_bytes,
            measured_bytes=process.process_bytes,
        )

    async def _predicted(self, workload: SliceWorkload) -> StagePlan:
        """The slice as the planner sees it in a plan of up to three stages."""
        unlimited = replace(self.profile.description, memory_budget_bytes=_UNLIMITED_BYTES)
        devices = tuple(replace(self.profile, device_id=place, description=unlimited) for place in _PLACES)
        bucket = LengthBucket(workload.prompt_tokens, NUM_NEW_TOKENS, workload.decode_sequences)
        problem = PlanningProblem(self.model, self.shape, devices, (bucket,))
        plan = await evaluate_plan(self.planner_address, problem, self._plan(workload))
        return next(stage for stage in plan.stages if stage.device_id == "slice")

    def _plan(self, workload: SliceWorkload) -> Plan:
        first, end, num_layers = workload.first_layer, workload.end_layer, self.shape.num_layers
        filler = workload.schemes[0]
        parts = ((0, (filler,) * first), (first, workload.schemes), (end, (filler,) * (num_layers - end)))
        stages = tuple(
            StagePlan(place, start, self._precisions(schemes))
            for place, (start, schemes) in zip(_PLACES, parts, strict=True)
            if schemes
        )
        return Plan(
            model=self.model,
            strategy="",
            stages=stages,
            prefill_micro_batch=workload.prefill_sequences,
            decode_micro_batch=workload.decode_sequences,
            num_lanes=1,
            max_sequence_tokens=workload.prompt_tokens + NUM_NEW_TOKENS,
            max_prefill_tokens=workload.prefill_tokens,
        )

    def _precisions(self, schemes: Sequence[str]) -> tuple[LayerPrecision, ...]:
        return tuple(LayerPrecision(scheme, self.group_size if SCHEMES[scheme].is_grouped else 0) for scheme in schemes)
