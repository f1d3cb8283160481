"""The stage server's gRPC face: messages to domain types and back, nothing else."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from llmpq.address import split_address
from llmpq.errors import MeshError
from llmpq.frames import Frame
from llmpq.messages import from_message, to_message
from llmpq.plan import StageMemory
from llmpq.profile_request import ProfileRequest
from llmpq.rating import RatingRequest
from llmpq.rpc.frame_sink import FrameSink
from llmpq.rpc.link_probe import PROBE_DEPLOYMENT, measure_link
from llmpq.stage_load import StageLoad
from llmpq.v1 import plan_pb2, stage_service_pb2_grpc
from llmpq.v1 import stage_service_pb2 as pb
from stage_server.deployment import Deployment
from stage_server.process_memory import process_bytes
from stage_server.stage import Stage

Context = grpc.aio.ServicerContext[Any, Any]


class StageServicer(stage_service_pb2_grpc.StageServiceServicer):
    """StageService over one Stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def DescribeDevice(  # noqa: N802 named by the contract
        self,
        request: pb.DescribeDeviceRequest,  # noqa: ARG002 empty
        context: Context,  # noqa: ARG002
    ) -> pb.DescribeDeviceResponse:
        """See the contract."""
        description = to_message(self._stage.device.description, plan_pb2.DeviceDescription)
        return pb.DescribeDeviceResponse(device_id=self._stage.device_id, description=description)

    async def ProfileLayers(  # noqa: N802
        self,
        request: pb.ProfileLayersRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.ProfileLayersResponse]:
        """See the contract."""
        done = 0
        async for point, total in self._stage.profile(from_message(ProfileRequest, request)):
            done += 1
            message = to_message(point, plan_pb2.LatencyPoint)
            yield pb.ProfileLayersResponse(point=message, points_done=done, points_total=total)

    async def KeepBusy(  # noqa: N802
        self,
        request: pb.KeepBusyRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.KeepBusyResponse]:
        """See the contract."""
        is_announced = False
        async for _ in self._stage.keep_busy(request.model):
            if not is_announced:
                yield pb.KeepBusyResponse()
                is_announced = True

    async def MeasureSensitivity(  # noqa: N802
        self,
        request: pb.MeasureSensitivityRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.MeasureSensitivityResponse]:
        """See the contract."""
        async for progress in self._stage.rate(from_message(RatingRequest, request)):
            yield to_message(progress, pb.MeasureSensitivityResponse)

    async def LoadStage(  # noqa: N802
        self,
        request: pb.LoadStageRequest,
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[pb.LoadStageResponse]:
        """See the contract."""
        async for progress in self._stage.load(from_message(StageLoad, request)):
            yield to_message(progress, pb.LoadStageResponse)

    async def UnloadStage(  # noqa: N802
        self,
        request: pb.UnloadStageRequest,  # noqa: ARG002 empty
        context: Context,  # noqa: ARG002
    ) -> pb.UnloadStageResponse:
        """See the contract."""
        await self._stage.unload()
        return pb.UnloadStageResponse()

    async def GetStage(  # noqa: N802
        self,
        request: pb.GetStageRequest,  # noqa: ARG002 empty
        context: Context,  # noqa: ARG002
    ) -> pb.GetStageResponse:
        """See the contract."""
        deployment = self._stage.deployment
        response = pb.GetStageResponse(
            state=self._state(),
            memory=_memory_message(self._stage.memory),
            process_bytes=process_bytes(),
            runtime_bytes=self._stage.runtime_bytes,
        )
        if deployment is not None:
            response.deployment_id = deployment.load.deployment_id
            response.plan_hash = deployment.load.plan_hash
            response.frames = deployment.counters.frames
            response.prefill_ns = deployment.counters.prefill_ns
            response.decode_ns = deployment.counters.decode_ns
            response.idle_ns = deployment.counters.idle_ns
        return response

    async def MeasureLink(  # noqa: N802
        self,
        request: pb.MeasureLinkRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.MeasureLinkResponse:
        """See the contract."""
        split_address(request.address, "address")
        link = await measure_link(self._stage.device_id, request.address)
        return pb.MeasureLinkResponse(link=to_message(link, plan_pb2.LinkProfile))

    def _state(self) -> pb.StageState.ValueType:
        if self._stage.is_loading:
            return pb.STAGE_STATE_LOADING
        deployment = self._stage.deployment
        if deployment is None:
            return pb.STAGE_STATE_EMPTY
        return pb.STAGE_STATE_FAILED if deployment.failure.done() else pb.STAGE_STATE_READY


class FrameReceiver(FrameSink):
    """ActivationService.Forward: queues each frame of a stream with its deployment.

    Args:
        stage: That the deployment is on.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._deployment: Deployment | None = None

    def take(self, frame: Frame) -> None:
        """See FrameSink, as of the properties below."""
        if frame.deployment_id != PROBE_DEPLOYMENT:
            self._deployment = self._stage.deployment_for(frame)
            self._deployment.submit(frame)

    @property
    def has_room(self) -> asyncio.Event | None:  # noqa: D102
        return self._deployment.has_room if self._deployment else None

    @property
    def failure(self) -> asyncio.Future[MeshError] | None:  # noqa: D102
        return self._deployment.failure if self._deployment else None


def _memory_message(memory: StageMemory) -> plan_pb2.StageMemory:
    return to_message(memory, plan_pb2.StageMemory)
