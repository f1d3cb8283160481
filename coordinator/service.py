"""The coordinator's gRPC faces: messages to domain types and back, nothing else."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

import grpc

from coordinator.admission import Admission
from coordinator.cluster import Cluster, Member
from coordinator.links import StageLink
from coordinator.plan_options import check_plan_options, check_strategy
from coordinator.planning import Planning, Work
from coordinator.registration import check_registration, confirm_address
from coordinator.results import ResultRouter
from coordinator.runner import Runner
from coordinator.status import Report
from coordinator.store import JobStore
from coordinator.traces import Traces
from llmpq.batch import Batch, BatchOptions, PreviewedPlan
from llmpq.device import DeviceDescription, DeviceProfile
from llmpq.errors import InvalidInputError, LeaseExpiredError, MeshError
from llmpq.fidelity import FidelityResult
from llmpq.frames import Frame
from llmpq.messages import from_message, to_message
from llmpq.plan import LayerSensitivity, LengthBucket, PlanningProblem, PlanOptions
from llmpq.rpc.frame_sink import FrameSink
from llmpq.rpc.link_probe import PROBE_DEPLOYMENT
from llmpq.trace import FrameTrace
from llmpq.v1 import coordinator_service_pb2 as pb
from llmpq.v1 import coordinator_service_pb2_grpc, plan_pb2
from llmpq.v1 import planner_service_pb2 as planner_pb

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")

#: Least time between two messages of WatchBatch.
_WATCH_INTERVAL_S = 0.2
#: Results read from the store at a time.
_RESULTS_PAGE = 256
#: Frames of a trace sent at a time.
_FRAMES_PAGE = 256
#: Workloads that one fidelity measurement may draw for a device.
_MAX_WORKLOADS = 1000


class CoordinatorServicer(coordinator_service_pb2_grpc.CoordinatorServiceServicer):
    """CoordinatorService over the parts of one coordinator."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        store: JobStore,
        admission: Admission,
        runner: Runner,
        planning: Planning,
        traces: Traces,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._admission = admission
        self._runner = runner
        self._planning = planning
        self._traces = traces

    async def RegisterStage(  # noqa: N802 named by the contract
        self,
        request_iterator: AsyncIterator[pb.RegisterStageRequest],
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.RegisterStageResponse]:
        """See the contract."""
        first = await anext(request_iterator, None)
        if first is None or not first.HasField("registration"):
            raise InvalidInputError("The first message must be a registration.", subject="registration")
        if not first.registration.HasField("description"):
            message = "registration.description is missing."
            raise InvalidInputError(message, subject="registration.description")
        member = Member(
            first.registration.device_id,
            first.registration.address,
            from_message(DeviceDescription, first.registration.description),
            frozenset(first.registration.cores),
        )
        check_registration(member)
        await confirm_address(member)
        response = pb.RegisterStageResponse(
            lease_id=member.lease_id,
            heartbeat_interval_s=self._cluster.heartbeat_interval_s,
        )
        with self._cluster.joined(member):
            yield response
            while await self._heartbeat(request_iterator, member):
                yield response

    async def SubmitBatch(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.SubmitBatchRequest],
        context: Context,  # noqa: ARG002
    ) -> pb.SubmitBatchResponse:
        """See the contract."""
        first = await anext(request_iterator, None)
        if first is None or not first.HasField("options"):
            raise InvalidInputError("The first message must have the options.", subject="options")
        lines = list(first.lines)
        async for request in request_iterator:
            if request.HasField("options"):
                raise InvalidInputError("Only the first message may have options.", subject="options")
            lines.extend(request.lines)
        batch, already_existed = await self._admission.submit(from_message(BatchOptions, first.options), lines)
        return pb.SubmitBatchResponse(batch=_batch_message(batch), already_existed=already_existed)

    async def GetBatch(  # noqa: N802
        self,
        request: pb.GetBatchRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.GetBatchResponse:
        """See the contract."""
        return pb.GetBatchResponse(batch=_batch_message(await self._store.batch(request.batch_id)))

    async def ListBatches(  # noqa: N802
        self,
        request: pb.ListBatchesRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.ListBatchesResponse:
        """See the contract."""
        batches, next_page_token = await self._store.batches(request.page_size, request.page_token)
        return pb.ListBatchesResponse(batches=map(_batch_message, batches), next_page_token=next_page_token)

    async def WatchBatch(  # noqa: N802
        self,
        request: pb.WatchBatchRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.WatchBatchResponse]:
        """See the contract."""
        last = None
        while last is None or not last.state.is_final:
            version = self._store.changes.version
            batch = await self._store.batch(request.batch_id)
            if batch != last:
                yield pb.WatchBatchResponse(batch=_batch_message(batch))
                last = batch
                await asyncio.sleep(0 if batch.state.is_final else _WATCH_INTERVAL_S)
            else:
                await self._store.changes.after(version)

    async def GetResults(  # noqa: N802
        self,
        request: pb.GetResultsRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.GetResultsResponse]:
        """See the contract."""
        after = request.after
        while True:
            version = self._store.changes.version
            batch = await self._store.batch(request.batch_id)
            results = await self._store.results(request.batch_id, after, _RESULTS_PAGE)
            for result in results:
                yield to_message(result, pb.GetResultsResponse)
                after = result.sequence
            if results:
                continue
            if batch.state.is_final or not request.follow:
                return
            await self._store.changes.after(version)

    async def CancelBatch(  # noqa: N802
        self,
        request: pb.CancelBatchRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.CancelBatchResponse:
        """See the contract."""
        return pb.CancelBatchResponse(batch=_batch_message(await self._runner.cancel(request.batch_id)))

    async def GetTrace(  # noqa: N802
        self,
        request: pb.GetTraceRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.GetTraceResponse]:
        """See the contract."""
        await self._store.batch(request.batch_id)
        for frames in _pages(self._traces.frames(request.batch_id)):
            yield pb.GetTraceResponse(frames=[to_message(frame, pb.FrameTrace) for frame in frames])

    async def GetCluster(  # noqa: N802
        self,
        request: pb.GetClusterRequest,  # noqa: ARG002 empty
        context: Context,  # noqa: ARG002
    ) -> pb.GetClusterResponse:
        """See the contract."""
        stages = await asyncio.gather(*map(_cluster_stage, self._cluster.members))
        return pb.GetClusterResponse(stages=stages, planner_address=self._planning.planner_address)

    async def PreviewPlan(  # noqa: N802
        self,
        request: pb.PreviewPlanRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.PreviewPlanResponse]:
        """See the contract."""
        options = from_message(PlanOptions, request.options)
        check_plan_options(options)
        for number, strategy in enumerate(request.strategies):
            check_strategy(strategy, f"strategies[{number}]")
        workload = tuple(from_message(LengthBucket, bucket) for bucket in request.workload)
        work, members = Work(request.model, workload, options), self._cluster.members

        def preview(report: Report) -> Coroutine[Any, Any, list[PreviewedPlan]]:
            return self._planning.preview(work, members, request.strategies, report)

        async with aclosing(_reported(preview)) as reported:
            async for message, previews in reported:
                results = [to_message(previewed, pb.PreviewedPlan) for previewed in previews or ()]
                yield pb.PreviewPlanResponse(status_message=message, results=results)

    async def GetPlanningProblem(  # noqa: N802
        self,
        request: pb.GetPlanningProblemRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.GetPlanningProblemResponse]:
        """See the contract."""
        options, members = from_message(PlanOptions, request.options), self._cluster.members
        check_plan_options(options)
        work = Work(request.model, tuple(from_message(LengthBucket, bucket) for bucket in request.workload), options)

        def measure(report: Report) -> Coroutine[Any, Any, PlanningProblem]:
            return self._planning.problem(work, members, report)

        async with aclosing(_reported(measure)) as reported:
            async for message, problem in reported:
                found = to_message(problem, planner_pb.PlanningProblem) if problem else None
                yield pb.GetPlanningProblemResponse(status_message=message, problem=found)

    async def RateLayers(  # noqa: N802
        self,
        request: pb.RateLayersRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.RateLayersResponse]:
        """See the contract."""
        options, members = from_message(PlanOptions, request.options), self._cluster.members
        check_plan_options(options)

        def rate(report: Report) -> Coroutine[Any, Any, tuple[LayerSensitivity, ...]]:
            return self._planning.rate(request.model, options, members, report)

        async with aclosing(_reported(rate)) as reported:
            async for message, ratings in reported:
                sensitivities = [to_message(entry, plan_pb2.LayerSensitivity) for entry in ratings or ()]
                yield pb.RateLayersResponse(status_message=message, sensitivities=sensitivities)

    async def ProfileDevices(  # noqa: N802
        self,
        request: pb.ProfileDevicesRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.ProfileDevicesResponse]:
        """See the contract."""
        options, members = from_message(PlanOptions, request.options), self._cluster.members
        check_plan_options(options)

        def profile(report: Report) -> Coroutine[Any, Any, tuple[DeviceProfile, ...]]:
            return self._planning.profile(request.model, options, members, report, is_fresh=request.is_fresh)

        async with aclosing(_reported(profile)) as reported:
            async for message, profiles in reported:
                messages = [to_message(found, plan_pb2.DeviceProfile) for found in profiles or ()]
                yield pb.ProfileDevicesResponse(status_message=message, profiles=messages)

    async def MeasureFidelity(  # noqa: N802
        self,
        request: pb.MeasureFidelityRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.MeasureFidelityResponse]:
        """See the contract."""
        options, members = from_message(PlanOptions, request.options), self._cluster.members
        check_plan_options(options)
        if not 1 <= request.num_workloads <= _MAX_WORKLOADS:
            raise InvalidInputError(
                f"num_workloads is {request.num_workloads}; it must be from 1 to {_MAX_WORKLOADS}.",
                subject="num_workloads",
            )
        results: asyncio.Queue[FidelityResult] = asyncio.Queue()

        async def measure(report: Report) -> None:
            measuring = self._planning.fidelity(
                request.model, options, members, report, num_workloads=request.num_workloads, seed=request.seed
            )
            async for result in measuring:
                results.put_nowait(result)
                report(f"Measured {result.device_id}.")

        async with aclosing(_reported(measure)) as reported:
            async for message, _ in reported:
                result = None if results.empty() else to_message(results.get_nowait(), pb.FidelityResult)
                yield pb.MeasureFidelityResponse(status_message=message, result=result)

    async def _heartbeat(self, requests: AsyncIterator[pb.RegisterStageRequest], member: Member) -> bool:
        """Waits for the next heartbeat; False if the stage has ended the stream.

        Raises:
            LeaseExpiredError: It did not come in time.
        """
        try:
            async with asyncio.timeout(self._cluster.lease_ttl_s):
                return await anext(requests, None) is not None
        except TimeoutError as error:
            raise LeaseExpiredError(
                f"No heartbeat of {member.device_id} came within {self._cluster.lease_ttl_s:g} s. Register again.",
                subject=member.device_id,
            ) from error


class ResultReceiver(FrameSink):
    """ActivationService over the result router: the last stage of every pipeline sends here.

    Args:
        router: Gets the frames.
    """

    def __init__(self, router: ResultRouter) -> None:
        self._router = router

    def take(self, frame: Frame) -> None:
        """See FrameSink."""
        if frame.deployment_id != PROBE_DEPLOYMENT:
            self._router.deliver(frame)


async def _reported(work: Callable[[Report], Coroutine[Any, Any, T]]) -> AsyncGenerator[tuple[str, T | None], None]:
    """Yields each sentence that `work` reports, as it comes, and at the end what it returns; raises what it raises."""
    messages: asyncio.Queue[str | None] = asyncio.Queue()
    working = asyncio.ensure_future(work(messages.put_nowait))
    working.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        while message := await messages.get():
            yield message, None
        yield "", await working
    finally:
        working.cancel()


def _pages(frames: Sequence[FrameTrace]) -> Iterator[Sequence[FrameTrace]]:
    return (frames[begin : begin + _FRAMES_PAGE] for begin in range(0, len(frames), _FRAMES_PAGE))


def _batch_message(batch: Batch) -> pb.Batch:
    message = to_message(replace(batch, create_time=None, start_time=None, end_time=None), pb.Batch)
    for name in ("create_time", "start_time", "end_time"):
        moment = getattr(batch, name)
        if moment is not None:
            getattr(message, name).FromDatetime(moment)
    return message


async def _cluster_stage(member: Member) -> pb.ClusterStage:
    message = pb.ClusterStage(
        device_id=member.device_id,
        address=member.address,
        description=to_message(member.description, plan_pb2.DeviceDescription),
        plan_hash=await _plan_hash(member),
    )
    message.register_time.FromDatetime(member.register_time)
    return message


async def _plan_hash(member: Member) -> str:
    """The plan that a stage holds; empty also if it cannot say, for then its lease is about to end."""
    try:
        async with StageLink.opened(member) as stage:
            return await stage.plan_hash()
    except MeshError:
        return ""
