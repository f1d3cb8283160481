"""The other services as the coordinator calls them: domain types in, domain types out."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from coordinator.cluster import Member
from llmpq.device import LatencyPoint, LinkProfile
from llmpq.errors import InternalError, UnavailableError
from llmpq.messages import from_message, to_message
from llmpq.plan import LayerSensitivity, Plan, PlanningProblem
from llmpq.profile_request import ProfileRequest
from llmpq.rating import RatingProgress, RatingRequest
from llmpq.rpc import open_channel, rpc_errors
from llmpq.rpc.channel import CONTROL_DEADLINE_S
from llmpq.stage_load import LoadProgress, StageLoad
from llmpq.v1 import plan_pb2
from llmpq.v1 import planner_service_pb2 as planner_pb
from llmpq.v1 import stage_service_pb2 as stage_pb
from llmpq.v1.planner_service_pb2_grpc import PlannerServiceStub
from llmpq.v1.stage_service_pb2_grpc import StageServiceStub

#: Takes how much of a measurement is done, and how much there is.
OnMeasured = Callable[[int, int], None]

#: Deadline of a question that somebody waits for and that a stage answers from memory.
_PROBE_DEADLINE_S = 2.0
#: How long a stage may take until it is busy: it may have to open the model.
_BUSY_DEADLINE_S = 60.0
#: Deadline of a measurement that sends a dozen MB.
_LINK_DEADLINE_S = 60.0


@dataclass(frozen=True)
class PlanProgress:
    """Mirror of the message `PlanProgress`; see there for each field."""

    candidates_done: int
    candidates_total: int
    best_objective_s: float


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of a process that no file backs: now, and before anything was loaded."""

    process_bytes: int
    runtime_bytes: int


class StageLink:
    """The control plane of one stage server. Errors are those that StageService lists."""

    def __init__(self, member: Member, channel: grpc.aio.Channel) -> None:
        self._peer = f"stage {member.device_id} at {member.address}"
        self._stub = StageServiceStub(channel)

    @classmethod
    @asynccontextmanager
    async def opened(cls, member: Member) -> AsyncIterator[StageLink]:
        """A link for the length of the block."""
        async with open_channel(member.address) as channel:
            yield cls(member, channel)

    async def profile(self, request: ProfileRequest, on_progress: OnMeasured) -> tuple[LatencyPoint, ...]:
        """Measures the device on a layer of the model."""
        points = []
        with rpc_errors(self._peer):
            async for response in self._stub.ProfileLayers(to_message(request, stage_pb.ProfileLayersRequest)):
                points.append(from_message(LatencyPoint, response.point))
                on_progress(response.points_done, response.points_total)
        return tuple(points)

    @asynccontextmanager
    async def kept_busy(self, model: str) -> AsyncIterator[None]:
        """Has the device compute layers of a model while the block runs.

        Raises:
            UnavailableError: It is not at work in time.
        """
        call = self._stub.KeepBusy(stage_pb.KeepBusyRequest(model=model))
        try:
            with rpc_errors(self._peer):
                try:
                    async with asyncio.timeout(_BUSY_DEADLINE_S):
                        await call.read()
                except TimeoutError as error:
                    message = f"The {self._peer} does not begin to compute."
                    raise UnavailableError(message, subject=self._peer) from error
            yield
        finally:
            call.cancel()

    async def rate(self, request: RatingRequest, on_progress: OnMeasured) -> tuple[LayerSensitivity, ...]:
        """Rates every layer at every scheme; not normalized."""
        ratings: list[LayerSensitivity] = []
        with rpc_errors(self._peer):
            async for response in self._stub.MeasureSensitivity(
                to_message(request, stage_pb.MeasureSensitivityRequest)
            ):
                progress = from_message(RatingProgress, response)
                ratings.extend(progress.sensitivities)
                on_progress(progress.steps_done, progress.steps_total)
        return tuple(ratings)

    async def load(self, load: StageLoad) -> AsyncIterator[LoadProgress]:
        """Makes the stage hold a slice of a model; yields how far it is."""
        with rpc_errors(self._peer):
            async for response in self._stub.LoadStage(to_message(load, stage_pb.LoadStageRequest)):
                yield from_message(LoadProgress, response)

    async def unload(self) -> None:
        """Frees what the stage holds."""
        with rpc_errors(self._peer):
            await self._stub.UnloadStage(stage_pb.UnloadStageRequest(), timeout=CONTROL_DEADLINE_S)

    async def process_memory(self) -> ProcessMemory:
        """What the stage's process takes of its host."""
        with rpc_errors(self._peer):
            response = await self._stub.GetStage(stage_pb.GetStageRequest(), timeout=CONTROL_DEADLINE_S)
        return ProcessMemory(response.process_bytes, response.runtime_bytes)

    async def link_to(self, address: str) -> LinkProfile:
        """Measures what it takes to hand a frame from this stage to another process."""
        with rpc_errors(self._peer):
            request = stage_pb.MeasureLinkRequest(address=address)
            response = await self._stub.MeasureLink(request, timeout=_LINK_DEADLINE_S)
        return from_message(LinkProfile, response.link)

    async def device_id(self) -> str:
        """The device that answers."""
        with rpc_errors(self._peer):
            response = await self._stub.DescribeDevice(stage_pb.DescribeDeviceRequest(), timeout=_PROBE_DEADLINE_S)
        return response.device_id

    async def plan_hash(self) -> str:
        """The plan that it holds; empty if none."""
        with rpc_errors(self._peer):
            response = await self._stub.GetStage(stage_pb.GetStageRequest(), timeout=_PROBE_DEADLINE_S)
        return response.plan_hash


async def create_plan(address: str, problem: PlanningProblem, on_progress: Callable[[PlanProgress], None]) -> Plan:
    """Asks the planner at `address`, waiting for it if it is not up yet.

    Raises:
        InvalidInputError, PreconditionError: As PlannerService.CreatePlan says.
        UnavailableError: It went away.
    """
    request = planner_pb.CreatePlanRequest(problem=to_message(problem, planner_pb.PlanningProblem))
    async with open_channel(address) as channel:
        with rpc_errors(f"planner at {address}"):
            async for response in PlannerServiceStub(channel).CreatePlan(request, wait_for_ready=True):
                if response.HasField("plan"):
                    return from_message(Plan, response.plan)
                on_progress(from_message(PlanProgress, response.progress))
    raise InternalError(f"The planner at {address} ended without a plan.", subject=address)


async def evaluate_plan(address: str, problem: PlanningProblem, plan: Plan) -> Plan:
    """The plan with what the planner at `address` predicts of it.

    Raises:
        InvalidInputError, PreconditionError: As PlannerService.EvaluatePlan says.
        UnavailableError: The planner is not there.
    """
    request = planner_pb.EvaluatePlanRequest(
        problem=to_message(problem, planner_pb.PlanningProblem), plan=to_message(plan, plan_pb2.Plan)
    )
    async with open_channel(address) as channel:
        with rpc_errors(f"planner at {address}"):
            response = await PlannerServiceStub(channel).EvaluatePlan(request, timeout=CONTROL_DEADLINE_S)
    return from_message(Plan, response.plan)
