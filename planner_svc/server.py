"""Puts a planner together and serves it."""

from llmpq.rpc import announce, serving, until_signal
from llmpq.v1 import planner_service_pb2_grpc
from planner_svc.config import PlannerConfig
from planner_svc.planner import Planner
from planner_svc.service import SERVICE_NAME, PlannerService


async def run(config: PlannerConfig) -> None:
    """Serves until SIGTERM or SIGINT; raises InvalidInputError for an address that cannot be bound."""
    service = PlannerService(Planner(config.time_limit_s))
    async with serving(
        config.listen,
        lambda server: planner_service_pb2_grpc.add_PlannerServiceServicer_to_server(service, server),
        [SERVICE_NAME],
    ) as server:
        stopped = until_signal()
        announce(server.address)
        await stopped
