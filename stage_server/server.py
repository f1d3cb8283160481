"""Puts a stage server together: device, state, services, membership."""

import asyncio
import platform
from collections.abc import Coroutine
from functools import partial
from typing import Any

import grpc
import structlog

from llmpq.frames import SERVICE_NAME as ACTIVATION_SERVICE
from llmpq.messages import to_message
from llmpq.rpc import announce, serving, until_signal
from llmpq.rpc.data_plane import add_forward_handler
from llmpq.rpc.local_receiver import listening
from llmpq.v1 import coordinator_service_pb2, plan_pb2, stage_service_pb2, stage_service_pb2_grpc
from stage_server.config import StageConfig
from stage_server.device import open_device
from stage_server.registration import keep_registered
from stage_server.service import FrameReceiver, StageServicer
from stage_server.stage import Stage

log = structlog.get_logger(__name__)
STAGE_SERVICE = stage_service_pb2.DESCRIPTOR.services_by_name["StageService"].full_name


async def run(config: StageConfig) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        InvalidInputError: No such device, an address that cannot be bound, or a registration that is refused.
    """
    device = open_device(config)
    # The name may need the port, which is known once bound: Stage only uses it in messages.
    async with Stage(config.name, device) as stage:
        make_sink = partial(FrameReceiver, stage)

        def add_services(server: grpc.aio.Server) -> None:
            stage_service_pb2_grpc.add_StageServiceServicer_to_server(StageServicer(stage), server)
            add_forward_handler(server, make_sink)

        async with (
            serving(config.listen, add_services, (STAGE_SERVICE, ACTIVATION_SERVICE)) as server,
            listening(server.address, make_sink),
        ):
            address = config.advertise or server.address
            stage.device_id = config.name or f"{platform.node()}/{config.device}/{address.rpartition(':')[2]}"
            stopped = until_signal()
            announce(server.address)
            await _serve(config, stage, address, stopped)


async def _serve(config: StageConfig, stage: Stage, address: str, stopped: Coroutine[Any, Any, None]) -> None:
    """Until a signal comes, or the coordinator refuses this stage for good."""
    ending = asyncio.ensure_future(stopped)
    waiting: set[asyncio.Future[None]] = {ending}
    if config.coordinator:
        registration = coordinator_service_pb2.StageRegistration(
            device_id=stage.device_id,
            address=address,
            description=to_message(stage.device.description, plan_pb2.DeviceDescription),
            cores=config.cores if config.device == "cpu" else (),
        )
        waiting.add(asyncio.ensure_future(keep_registered(config.coordinator, registration)))
    done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
