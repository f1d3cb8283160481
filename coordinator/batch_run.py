"""The life of one batch, from its lines to its answers, over as many attempts as it takes."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from coordinator.calibration import calibration_samples
from coordinator.cluster import Cluster, Member
from coordinator.deployment import deployed
from coordinator.ledger import Ledger
from coordinator.openai_requests import first_model_of
from coordinator.pipeline import Pipeline
from coordinator.planning import Planning, Work, workload_of
from coordinator.racing import unless
from coordinator.reports import PlanMeter
from coordinator.results import ResultRouter
from coordinator.store import JobStore, UnfinishedRequest
from coordinator.tokenizing import ModelTokenizer
from coordinator.traces import Traces
from coordinator.validation import validate
from llmpq.batch import Batch, BatchOptions, BatchState
from llmpq.errors import InvalidInputError, MeshError, NotFoundError, PreconditionError
from llmpq.frames import StageTiming
from llmpq.plan import LengthBucket, Plan
from llmpq.schedule.scheduler import Limits, MicroBatch, Scheduler
from llmpq.schedule.sequence import Sequence as TokenSequence
from llmpq.stage_load import LoadProgress

log = structlog.get_logger(__name__)

#: Failures in a row, none of which brought a single token, after which a batch is given up.
MAX_FAILURES = 5
#: Heartbeat intervals that a lost stage has to come back before the batch is planned without it.
_GRACE_INTERVALS = 2
#: Time between two stage reports.
_REPORT_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Mesh:
    """What a batch runs on.

    Attributes:
        cluster: The stages.
        planning: The way to plans.
        router: Where results come in.
        traces: What became of the frames of the last batches.
    """

    cluster: Cluster
    planning: Planning
    router: ResultRouter
    traces: Traces = field(default_factory=Traces)

    @property
    def grace_s(self) -> float:
        """How long a lost stage has to come back."""
        return _GRACE_INTERVALS * self.cluster.heartbeat_interval_s


class BatchRun:
    """Brings a stored batch from whatever state it is in to its last answer.

    Args:
        batch: The batch as stored.
        options: Its options.
        store: The job store.
        mesh: What it runs on.
    """

    def __init__(self, batch: Batch, options: BatchOptions, store: JobStore, mesh: Mesh) -> None:
        self._batch = batch
        self._batch_id = batch.batch_id
        self._options = options
        self._store = store
        self._mesh = mesh
        self._plan = batch.plan
        self._refusal: PreconditionError | None = None

    async def run(self) -> None:
        """Returns when every line is answered.

        Raises:
            MeshError: The batch cannot be run; says why.
        """
        tokenizer = await asyncio.to_thread(ModelTokenizer.load, self._batch.model)
        if self._batch.state in {BatchState.QUEUED, BatchState.VALIDATING}:
            await self._validate(tokenizer)
        num_failures = 0
        while unfinished := await self._store.unfinished_requests(self._batch_id):
            ledger = Ledger(self._store, self._batch, self._options, tokenizer)
            try:
                await self._attempt(ledger, unfinished)
            except (InvalidInputError, NotFoundError):
                raise  # the same attempt again would fail the same way
            except MeshError as error:
                num_failures = 1 if ledger.num_recorded else num_failures + 1
                if num_failures == MAX_FAILURES or error is self._refusal:
                    raise
                await self._recover(error, num_failures)

    async def _validate(self, tokenizer: ModelTokenizer) -> None:
        await self._set_state(BatchState.VALIDATING, "Checking and tokenizing the lines.")
        lines = await self._store.unanswered_lines(self._batch_id)
        model = self._options.model or first_model_of(text for _, text in lines)
        validated = await asyncio.to_thread(validate, lines, model, tokenizer, self._options)
        await self._store.add_requests(self._batch_id, validated.requests, validated.errors)

    async def _attempt(self, ledger: Ledger, unfinished: Sequence[UnfinishedRequest]) -> None:
        """Plans, loads and runs what has still to run."""
        sequences = ledger.opened(unfinished)
        if sequences:
            plan, stages = await self._planned(workload_of(map(_lengths, sequences)))
            await unless(self._mesh.cluster.fail_when_left(stages), self._load_and_run(plan, stages, sequences, ledger))

    async def _planned(self, workload: Sequence[LengthBucket]) -> tuple[Plan, tuple[Member, ...]]:
        """A plan on the members of the moment, and the member behind each of its stages; waits until there is one."""
        cluster = self._mesh.cluster
        while True:
            await self._wait_for_members()
            version, members = cluster.changes.version, {member.device_id: member for member in cluster.members}
            await self._set_state(BatchState.PLANNING, f"Planning for {len(members)} devices.")
            try:
                work = Work(self._batch.model, tuple(workload), self._options.plan_options)
                self._plan = await self._mesh.planning.plan(work, tuple(members.values()), self._report_status)
                return self._plan, tuple(members[stage.device_id] for stage in self._plan.stages)
            except PreconditionError as error:
                await self._wait_for_others(version, error)

    async def _wait_for_members(self) -> None:
        """Waits for the devices that the batch ran on before, and for a first one if there is none."""
        cluster = self._mesh.cluster
        if self._plan:
            await cluster.settled({stage.device_id for stage in self._plan.stages}, self._mesh.grace_s)
        while not cluster.members:
            version = cluster.changes.version
            await self._set_state(BatchState.PLANNING, "There are no devices: waiting for a stage server to register.")
            await cluster.changes.after(version)
            await cluster.quiet(cluster.heartbeat_interval_s)

    async def _wait_for_others(self, version: int, infeasible: PreconditionError) -> None:
        """Waits until the members change from those at `version`; a batch that never ran is refused after a grace."""
        is_new = self._plan is None
        message = f"Waiting for other devices: {infeasible.message}"
        await self._set_state(BatchState.PLANNING, message)
        try:
            async with asyncio.timeout(self._mesh.grace_s if is_new else None):
                await self._mesh.cluster.changes.after(version)
        except TimeoutError:
            self._refusal = infeasible
            raise infeasible from None

    async def _load_and_run(
        self,
        plan: Plan,
        stages: Sequence[Member],
        sequences: Sequence[TokenSequence],
        ledger: Ledger,
    ) -> None:
        meter = PlanMeter(plan)

        def on_progress(stage: int, progress: LoadProgress) -> None:
            meter.loaded(stage, progress)
            self._store.post_stages(self._batch_id, meter.reports())

        await self._set_state(BatchState.LOADING, f"Loading {len(stages)} stages.", plan=plan)
        samples = await asyncio.to_thread(calibration_samples, plan.model) if plan.rounding.needs_calibration else ()
        async with deployed(plan, stages, samples, self._mesh.router, on_progress) as deployment:
            await self._set_state(BatchState.RUNNING, f"Generating on {len(stages)} stages.")
            await self._store.set_started(self._batch_id)
            frames = self._mesh.traces.start(self._batch_id)
            recorder = _Recorder(self._store, self._batch_id, ledger, meter)
            scheduler = Scheduler(Limits.of_plan(plan), sequences)
            await Pipeline(deployment, scheduler, recorder.record, frames).run()
            recorder.report()
        await self._mesh.planning.learn(plan, stages, meter.ratios(), frames.unhindered_decode)

    async def _recover(self, error: MeshError, num_failures: int) -> None:
        """Says what happened, and lets the cluster notice who is gone."""
        log.warning("batch.interrupted", batch=self._batch_id, reason=error.reason, error=error.message)
        message = f"Interrupted, trying again ({num_failures} of {MAX_FAILURES - 1}): {error.message}"
        await self._set_state(BatchState.PLANNING, message)
        await asyncio.sleep(self._mesh.cluster.heartbeat_interval_s)

    async def _set_state(self, state: BatchState, message: str, *, plan: Plan | None = None) -> None:
        await self._store.set_state(self._batch_id, state, message, plan=plan)

    def _report_status(self, message: str) -> None:
        self._store.post_status(self._batch_id, message)


class _Recorder:
    """Passes results on to ledger and meter, and publishes the stage reports now and then."""

    def __init__(self, store: JobStore, batch_id: str, ledger: Ledger, meter: PlanMeter) -> None:
        self._store = store
        self._batch_id = batch_id
        self._ledger = ledger
        self._meter = meter
        self._reported_at = 0.0
        meter.started()

    def record(
        self,
        micro_batch: MicroBatch,
        timings: Sequence[StageTiming],
        advanced: Sequence[TokenSequence],
    ) -> None:
        self._ledger.record(advanced)
        self._meter.computed(micro_batch, timings)
        if time.monotonic() - self._reported_at > _REPORT_INTERVAL_S:
            self.report()

    def report(self) -> None:
        self._reported_at = time.monotonic()
        self._store.post_stages(self._batch_id, self._meter.reports())


def _lengths(sequence: TokenSequence) -> tuple[int, int]:
    """Tokens to prefill and tokens to generate. A scored prompt costs what asking for its last token would."""
    num_prompt, num_generated = len(sequence.prompt), len(sequence.generated)
    if sequence.is_scoring:
        return max(num_prompt - 1, 1), 1
    return num_prompt + num_generated, sequence.max_tokens - num_generated
