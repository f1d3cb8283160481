"""A plan put into effect: every stage loaded, and a stream of frames into the first."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from coordinator.cluster import Member
from coordinator.links import StageLink
from coordinator.results import ResultRouter
from llmpq.frames import Frame
from llmpq.plan import Plan
from llmpq.rpc.data_plane import ForwardStream
from llmpq.stage_load import LoadProgress, StageLoad, TokenSequence

#: Takes the number of a stage, and how far its load is.
OnProgress = Callable[[int, LoadProgress], None]


@dataclass(frozen=True)
class Deployment:
    """Stages that hold a plan.

    Attributes:
        deployment_id: Named by all its frames.
        frames: Stream into the first stage.
        results: Results as they come from the last.
    """

    deployment_id: str
    frames: ForwardStream
    results: asyncio.Queue[Frame]


@asynccontextmanager
async def deployed(
    plan: Plan,
    stages: Sequence[Member],
    samples: Sequence[Sequence[int]],
    router: ResultRouter,
    on_progress: OnProgress,
) -> AsyncIterator[Deployment]:
    """Loads a plan on its stages, for the length of the block. The stages keep the weights afterwards.

    Args:
        plan: The plan.
        stages: The member behind each of its stages.
        samples: Token ids of calibration sequences, where the plan's rounding needs them.
        router: Gets the results.
        on_progress: Told how far each stage's load is.

    Raises:
        MeshError: As StageService.LoadStage.
    """
    deployment_id = uuid.uuid4().hex
    addresses = [*(stage.address for stage in stages), router.address]
    loads = stage_loads(plan, deployment_id, addresses, samples)
    with router.expecting(deployment_id) as results:
        await _load_all(stages, loads, on_progress)
        async with ForwardStream(addresses[0]) as frames:
            yield Deployment(deployment_id, frames, results)


def stage_loads(
    plan: Plan, deployment_id: str, addresses: Sequence[str], samples: Sequence[Sequence[int]] = ()
) -> list[StageLoad]:
    """What each stage of a plan has to load; `addresses` holds those of all stages, then where results go."""
    calibration = tuple(TokenSequence(tuple(sample)) for sample in samples)
    return [
        StageLoad(
            deployment_id=deployment_id,
            plan_hash=plan.hash,
            model=plan.model,
            stage=number,
            num_stages=len(plan.stages),
            first_layer=stage.first_layer,
            layers=stage.layers,
            num_slots=plan.num_slots,
            max_sequence_tokens=plan.max_sequence_tokens,
            max_frame_tokens=max(plan.max_prefill_tokens, plan.decode_micro_batch),
            next_address=addresses[number + 1],
            rounding=plan.rounding,
            samples=calibration,
            has_int8_kv_cache=plan.has_int8_kv_cache,
            has_int8_activations=plan.has_int8_activations,
        )
        for number, stage in enumerate(plan.stages)
    ]


async def _load_all(stages: Sequence[Member], loads: Sequence[StageLoad], on_progress: OnProgress) -> None:
    """Loads all stages at the same time; the first failure ends the others and is raised."""
    tasks = [asyncio.ensure_future(_load(stage, load, on_progress)) for stage, load in zip(stages, loads, strict=True)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _load(member: Member, load: StageLoad, on_progress: OnProgress) -> None:
    async with StageLink.opened(member) as stage:
        async for progress in stage.load(load):
            on_progress(load.stage, progress)
