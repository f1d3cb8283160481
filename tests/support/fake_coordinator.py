"""A coordinator that answers at once, behind real gRPC, for the tests of the client and the command line."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from llmpq.errors import InvalidInputError, NotFoundError, OverloadedError, UnavailableError
from llmpq.messages import to_message
from llmpq.plan import LayerPrecision, Plan, PlanEstimate, StageMemory, StagePlan
from llmpq.rpc import serving
from llmpq.v1 import coordinator_service_pb2 as pb
from llmpq.v1 import plan_pb2, planner_service_pb2
from llmpq.v1.coordinator_service_pb2_grpc import CoordinatorServiceServicer, add_CoordinatorServiceServicer_to_server

#: What the fake scores every token with; the perplexity of anything is then 8.
TOKEN_LOGPROB = -math.log(8)


@dataclass
class FakeCoordinator(CoordinatorServiceServicer):
    """Answers each line with its number, and lines that are not JSON with an error.

    Attributes:
        drop_after: Streams of results break after this many messages; 0 never.
        breaks: How many streams have broken.
        is_full: Refuse submissions.
        is_stuck: Batches never end, and no result comes.
        submissions: Options of every submission.
        rating_options: Options of every RateLayers.
        problem: The answer to every GetPlanningProblem.
        profile_requests: Every ProfileDevices.
        frames: The trace of every batch.
    """

    address: str = ""
    drop_after: int = 0
    breaks: int = 0
    is_full: bool = False
    is_stuck: bool = False
    final_state: pb.BatchState.ValueType = pb.BATCH_STATE_COMPLETED
    submissions: list[pb.BatchOptions] = field(default_factory=list)
    rating_options: list[plan_pb2.PlanOptions] = field(default_factory=list)
    problem: planner_service_pb2.PlanningProblem = field(default_factory=planner_service_pb2.PlanningProblem)
    profile_requests: list[pb.ProfileDevicesRequest] = field(default_factory=list)
    frames: list[pb.FrameTrace] = field(default_factory=list)
    batches: dict[str, pb.Batch] = field(default_factory=dict)
    outcomes: dict[str, list[pb.GetResultsResponse]] = field(default_factory=dict)

    async def SubmitBatch(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.SubmitBatchRequest], _context: object
    ) -> pb.SubmitBatchResponse:
        """Stores the batch with all its answers."""
        if self.is_full:
            raise OverloadedError("The queue is full.", retry_after_s=2.5)
        messages = [message async for message in request_iterator]
        options = messages[0].options
        self.submissions.append(options)
        lines = [line for message in messages for line in message.lines]
        if not lines:
            raise InvalidInputError("The batch has no lines.", subject="lines")
        results = [_answer(number, line) for number, line in enumerate(lines, start=1) if line]
        if self.final_state == pb.BATCH_STATE_FAILED:
            results = [_unanswered(result) for result in results]
        num_failed = sum(result.is_error for result in results)
        batch = pb.Batch(
            batch_id=f"batch-{len(self.batches) + 1}",
            state=self.final_state,
            status_message="the fake says so",
            model=options.model,
            requests_total=len(results),
            requests_completed=len(results) - num_failed,
            requests_failed=num_failed,
            generated_tokens=7 * (len(results) - num_failed),
            create_time=Timestamp(seconds=100),
            start_time=Timestamp(seconds=110),
            end_time=Timestamp(seconds=112),
            plan=to_message(PLAN, plan_pb2.Plan),
            stages=[_stage_report(stage) for stage in PLAN.stages],
            metadata=options.metadata,
        )
        self.batches[batch.batch_id] = batch
        self.outcomes[batch.batch_id] = [
            pb.GetResultsResponse(
                sequence=sequence,
                custom_id=result.custom_id,
                line_number=result.line_number,
                is_error=result.is_error,
                json=result.json,
            )
            for sequence, result in enumerate(results, start=1)
        ]
        return pb.SubmitBatchResponse(batch=batch)

    async def GetBatch(self, request: pb.GetBatchRequest, _context: object) -> pb.GetBatchResponse:  # noqa: N802
        """Returns a batch."""
        return pb.GetBatchResponse(batch=self._find(request.batch_id))

    async def ListBatches(self, request: pb.ListBatchesRequest, _context: object) -> pb.ListBatchesResponse:  # noqa: N802
        """Lists two batches a page."""
        newest_first = list(self.batches.values())[::-1]
        start = int(request.page_token or 0)
        page = newest_first[start : start + 2]
        token = str(start + 2) if start + 2 < len(newest_first) else ""
        return pb.ListBatchesResponse(batches=page, next_page_token=token)

    async def WatchBatch(self, request: pb.WatchBatchRequest, _context: object) -> AsyncIterator[pb.WatchBatchResponse]:  # noqa: N802
        """Shows the batch loading, running and done."""
        batch = self._find(request.batch_id)
        for state in (pb.BATCH_STATE_LOADING, pb.BATCH_STATE_RUNNING):
            snapshot = pb.Batch()
            snapshot.CopyFrom(batch)
            snapshot.state = state
            yield pb.WatchBatchResponse(batch=snapshot)
            if self.drop_after and self.breaks == 0:
                self._break()
        if self.is_stuck:
            await asyncio.Event().wait()
        yield pb.WatchBatchResponse(batch=batch)

    async def GetResults(self, request: pb.GetResultsRequest, _context: object) -> AsyncIterator[pb.GetResultsResponse]:  # noqa: N802
        """Sends the answers."""
        self._find(request.batch_id)
        if self.is_stuck:
            await asyncio.Event().wait()
        for count, result in enumerate(self.outcomes[request.batch_id][request.after :], start=1):
            yield result
            if count == self.drop_after:
                self._break()

    async def CancelBatch(self, request: pb.CancelBatchRequest, _context: object) -> pb.CancelBatchResponse:  # noqa: N802
        """Cancels whatever state the batch is in."""
        batch = self._find(request.batch_id)
        batch.state = pb.BATCH_STATE_CANCELLED
        return pb.CancelBatchResponse(batch=batch)

    async def ProfileDevices(  # noqa: N802
        self, request: pb.ProfileDevicesRequest, _context: object
    ) -> AsyncIterator[pb.ProfileDevicesResponse]:
        """One device with a point of each phase and a link."""
        self.profile_requests.append(request)
        yield pb.ProfileDevicesResponse(status_message="Measuring device a: 1 of 2 points.")
        points = [
            plan_pb2.LatencyPoint(
                part=plan_pb2.MODEL_PART_LAYER,
                scheme="w8",
                phase=phase,
                num_sequences=sequences,
                num_tokens=tokens,
                duration_ns=2_500_000,
            )
            for phase, sequences, tokens in ((plan_pb2.PHASE_PREFILL, 1, 96), (plan_pb2.PHASE_DECODE, 6, 1))
        ]
        profile = plan_pb2.DeviceProfile(
            device_id="a", points=points, link_latency_ns=250_000, link_bytes_per_s=2 * 10**9
        )
        profile.description.kind = "cpu"
        yield pb.ProfileDevicesResponse(profiles=[profile])

    async def MeasureFidelity(  # noqa: N802
        self, request: pb.MeasureFidelityRequest, _context: object
    ) -> AsyncIterator[pb.MeasureFidelityResponse]:
        """Predictions that are 10 % too high in prefill and 20 % too low in decode."""
        for number in range(request.num_workloads):
            result = pb.FidelityResult(
                device_id="a",
                first_layer=number,
                schemes=["w8", "w4"],
                prefill_sequences=2,
                decode_sequences=4,
                prompt_tokens=10,
                predicted_prefill_ms=11.0,
                measured_prefill_ms=10.0,
                predicted_decode_ms=4.0,
                measured_decode_ms=5.0,
                predicted_bytes=103,
                measured_bytes=100,
            )
            yield pb.MeasureFidelityResponse(result=result)

    async def GetTrace(self, request: pb.GetTraceRequest, _context: object) -> AsyncIterator[pb.GetTraceResponse]:  # noqa: N802
        """Sends one frame a message."""
        self._find(request.batch_id)
        for frame in self.frames:
            yield pb.GetTraceResponse(frames=[frame])

    async def GetCluster(self, _request: pb.GetClusterRequest, _context: object) -> pb.GetClusterResponse:  # noqa: N802
        """Has one member."""
        description = plan_pb2.DeviceDescription(
            kind="cpu",
            name="Fake CPU",
            cpu_class="avx2",
            num_threads=1,
            memory_budget_bytes=10**9,
            schemes=["w16", "w4"],
            activation_bytes=4,
        )
        stage = pb.ClusterStage(device_id="fast", address="127.0.0.1:9", description=description, plan_hash=PLAN.hash)
        return pb.GetClusterResponse(stages=[stage], planner_address="127.0.0.1:8")

    async def PreviewPlan(  # noqa: N802
        self, request: pb.PreviewPlanRequest, _context: object
    ) -> AsyncIterator[pb.PreviewPlanResponse]:
        """Finds a plan by any strategy but `uniform`."""
        yield pb.PreviewPlanResponse(status_message="Profiling fast")
        results = [
            pb.PreviewedPlan(strategy=strategy, plan=to_message(PLAN, plan_pb2.Plan))
            if strategy != "uniform"
            else pb.PreviewedPlan(strategy=strategy, error="No precision fits.")
            for strategy in request.strategies or [request.options.strategy]
        ]
        yield pb.PreviewPlanResponse(results=results)

    async def GetPlanningProblem(  # noqa: N802
        self, request: pb.GetPlanningProblemRequest, _context: object
    ) -> AsyncIterator[pb.GetPlanningProblemResponse]:
        """The problem, for the work and with the options that were asked for."""
        yield pb.GetPlanningProblemResponse(status_message="Profiling fast")
        problem = planner_service_pb2.PlanningProblem(
            model=request.model,
            shape=self.problem.shape,
            devices=self.problem.devices,
            workload=request.workload,
            options=request.options,
        )
        yield pb.GetPlanningProblemResponse(problem=problem)

    async def RateLayers(  # noqa: N802
        self, request: pb.RateLayersRequest, _context: object
    ) -> AsyncIterator[pb.RateLayersResponse]:
        """Rates two layers, the second as ten times as sensitive as the first."""
        self.rating_options.append(request.options)
        yield pb.RateLayersResponse(status_message="Measuring")
        costs = {"w16": 0.0, "w8": 0.001, "w4": 1.0}
        ratings = [
            plan_pb2.LayerSensitivity(layer=layer, scheme=scheme, omega=costs[scheme] * share / 11)
            for scheme in request.options.allowed_schemes or costs
            for layer, share in enumerate((1, 10))
        ]
        yield pb.RateLayersResponse(sensitivities=ratings)

    def _find(self, batch_id: str) -> pb.Batch:
        if batch_id not in self.batches:
            raise NotFoundError(f"There is no batch '{batch_id}'.", subject=batch_id)
        return self.batches[batch_id]

    def _break(self) -> None:
        self.breaks += 1
        raise UnavailableError("The coordinator is shutting down.")


PLAN = Plan(
    model="models/fake",
    strategy="llm-pq",
    stages=(
        StagePlan(
            "fast",
            0,
            (LayerPrecision("w8"), LayerPrecision("w8"), LayerPrecision("w4", 64)),
            StageMemory(1000, 200, 300, 50, 2000),
            prefill_ms=12.5,
            decode_ms=3.5,
        ),
        StagePlan("slow", 3, (LayerPrecision("w4", 64),), StageMemory(400, 200, 100, 50, 800), 20.0, 4.0),
    ),
    prefill_micro_batch=4,
    decode_micro_batch=8,
    num_lanes=2,
    max_sequence_tokens=256,
    max_prefill_tokens=512,
    estimate=PlanEstimate(total_s=3.0, throughput_tokens_per_s=70.0, quality_loss=0.4),
).with_hash()


@dataclass
class _Answered:
    line_number: int
    custom_id: str
    is_error: bool
    json: str


def _answer(number: int, line: str) -> _Answered:
    try:
        request = json.loads(line)
    except json.JSONDecodeError:
        error = {"id": f"r{number}", "custom_id": None, "response": None, "error": {"message": f"line {number}: bad"}}
        return _Answered(number, "", is_error=True, json=json.dumps(error))
    custom_id = request["custom_id"]
    choice: dict[str, Any] = {"text": f"answer {number}"}
    if request["body"].get("echo"):
        num_scored = len(request["body"]["prompt"]) - 1
        choice["logprobs"] = {"token_logprobs": [None, *[TOKEN_LOGPROB] * num_scored]}
    response = {"status_code": 200, "body": {"choices": [choice]}}
    record = {"id": f"r{number}", "custom_id": custom_id, "response": response, "error": None}
    return _Answered(number, custom_id, is_error=False, json=json.dumps(record))


def _unanswered(answered: _Answered) -> _Answered:
    error = {"code": "batch_failed", "message": "The batch failed before this line was answered."}
    record = json.loads(answered.json) | {"response": None, "error": error}
    return _Answered(answered.line_number, answered.custom_id, is_error=True, json=json.dumps(record))


def _stage_report(stage: StagePlan) -> pb.StageReport:
    return pb.StageReport(
        device_id=stage.device_id,
        layers_done=len(stage.layers),
        layers_total=len(stage.layers),
        memory=to_message(stage.memory, plan_pb2.StageMemory),
        predicted_prefill_ms=stage.prefill_ms,
        measured_prefill_ms=stage.prefill_ms * 1.1,
        predicted_decode_ms=stage.decode_ms,
        measured_decode_ms=stage.decode_ms * 0.9,
        busy_ratio=0.5,
    )


@asynccontextmanager
async def served(fake: FakeCoordinator) -> AsyncIterator[None]:
    """Serves the fake inside the block and sets its address."""
    async with serving(
        "127.0.0.1:0",
        lambda server: add_CoordinatorServiceServicer_to_server(fake, server),
        ["llmpq.v1.CoordinatorService"],
        drain_s=0.1,
    ) as server:
        fake.address = server.address
        yield
