"""Puts a coordinator together: store, cluster, queue, services."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import grpc

from coordinator.admission import Admission
from coordinator.batch_run import Mesh
from coordinator.cluster import Cluster
from coordinator.config import CoordinatorConfig
from coordinator.planning import Planning
from coordinator.racing import unless
from coordinator.results import ResultRouter
from coordinator.runner import Runner
from coordinator.service import CoordinatorServicer, ResultReceiver
from coordinator.store import JobStore
from llmpq.frames import SERVICE_NAME as ACTIVATION_SERVICE
from llmpq.rpc import announce, serving, until_signal
from llmpq.rpc.data_plane import add_forward_handler
from llmpq.rpc.local_receiver import listening
from llmpq.v1 import coordinator_service_pb2
from llmpq.v1.coordinator_service_pb2_grpc import add_CoordinatorServiceServicer_to_server

COORDINATOR_SERVICE = coordinator_service_pb2.DESCRIPTOR.services_by_name["CoordinatorService"].full_name
#: Every long call can be opened again where it ended, and nothing is kept in memory only: no need to wait for them.
_DRAIN_S = 0.5


async def run(config: CoordinatorConfig) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        InvalidInputError: An address that cannot be bound or that others cannot reach.
        PreconditionError: Another coordinator uses the state directory.
    """
    async with coordinating(config) as (address, runner):
        stopped = until_signal()
        announce(address)
        await unless(runner.run(), stopped)


@asynccontextmanager
async def coordinating(config: CoordinatorConfig) -> AsyncIterator[tuple[str, Runner]]:
    """Serves inside the block; gives the address and the queue, which does not run yet. Raises as `run`."""
    async with JobStore.opened(config.state) as store:
        router = ResultRouter()
        make_sink = partial(ResultReceiver, router)
        mesh = Mesh(Cluster(config.lease_ttl_s), Planning(config.planner, config.state, router), router)
        runner = Runner(store, mesh)
        servicer = CoordinatorServicer(
            cluster=mesh.cluster,
            store=store,
            admission=Admission(store, config.max_queued_requests),
            runner=runner,
            planning=mesh.planning,
            traces=mesh.traces,
        )

        def add_services(server: grpc.aio.Server) -> None:
            add_CoordinatorServiceServicer_to_server(servicer, server)
            add_forward_handler(server, make_sink)

        services = (COORDINATOR_SERVICE, ACTIVATION_SERVICE)
        async with (
            serving(config.listen, add_services, services, drain_s=_DRAIN_S) as server,
            listening(server.address, make_sink),
        ):
            mesh.router.address = config.advertised(server.address)
            yield server.address, runner
