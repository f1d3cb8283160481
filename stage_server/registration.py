"""Keeps this stage a member of the cluster: one lease stream, opened again whenever it breaks."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import asyncio
from contextlib import suppress
from typing import Any, cast

import grpc
import structlog

from llmpq.errors import ConflictError, InvalidInputError, MeshError, UnavailableError
from llmpq.rpc import open_channel, rpc_errors
from llmpq.v1 import coordinator_service_pb2 as pb
from llmpq.v1 import coordinator_service_pb2_grpc as pb_grpc

log = structlog.get_logger(__name__)

#: Pause before a broken lease is opened again.
_RETRY_S = 0.5
#: How long the coordinator may take to answer a heartbeat.
_ANSWER_TIMEOUT_S = 10.0


async def keep_registered(coordinator: str, registration: pb.StageRegistration) -> None:
    """Holds a lease at the coordinator for as long as the task lives.

    Raises:
        InvalidInputError: The coordinator refuses the registration itself; trying again would not help.
    """
    while True:
        try:
            await _hold_lease(coordinator, registration)
        except InvalidInputError:
            raise
        except ConflictError as error:
            # After a restart of this process its old lease may live a little longer.
            log.warning("lease.refused", coordinator=coordinator, reason=str(error))
        except MeshError as error:
            log.info("lease.lost", coordinator=coordinator, reason=error.reason)
        await asyncio.sleep(_RETRY_S)


async def _hold_lease(coordinator: str, registration: pb.StageRegistration) -> None:
    async with open_channel(coordinator) as channel:
        with rpc_errors(coordinator):
            call = pb_grpc.CoordinatorServiceStub(channel).RegisterStage(wait_for_ready=True)
            await call.write(pb.RegisterStageRequest(registration=registration))
            granted = await _answer(call, coordinator)
            log.info("lease.granted", coordinator=coordinator, lease_id=granted.lease_id)
            while True:
                await _heartbeat(call, granted.heartbeat_interval_s, coordinator)


async def _heartbeat(call: Any, interval_s: float, coordinator: str) -> None:
    """Waits an interval, noticing at once if the stream breaks meanwhile, and exchanges one heartbeat."""
    answer = asyncio.ensure_future(_answer(call, coordinator))
    done, _ = await asyncio.wait({answer}, timeout=interval_s)
    if not done:
        with suppress(asyncio.InvalidStateError):  # the lease ended meanwhile; the answer says why
            await call.write(pb.RegisterStageRequest(heartbeat=pb.Heartbeat()))
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            await answer
    except TimeoutError as error:
        raise UnavailableError(f"{coordinator} does not answer heartbeats.", subject=coordinator) from error


async def _answer(call: Any, coordinator: str) -> pb.RegisterStageResponse:
    response = await call.read()
    if response is grpc.aio.EOF:
        raise UnavailableError(f"{coordinator} ended the lease.", subject=coordinator)
    return cast("pb.RegisterStageResponse", response)
