"""`python -m planner_svc`: serves the planner until SIGTERM or SIGINT."""

import argparse
from collections.abc import Sequence

import uvloop

from llmpq.log import configure_logging
from llmpq.rpc import announce, serving, until_signal
from llmpq.v1 import planner_service_pb2_grpc
from planner_svc.config import PlannerConfig
from planner_svc.planner import Planner
from planner_svc.service import SERVICE_NAME, PlannerService


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and serves."""
    config = _parse(arguments)
    configure_logging("planner", level=config.log_level)
    uvloop.run(_serve(config))


async def _serve(config: PlannerConfig) -> None:
    service = PlannerService(Planner(config.time_limit_s, config.max_payload_bytes))
    async with serving(
        config.listen,
        lambda server: planner_service_pb2_grpc.add_PlannerServiceServicer_to_server(service, server),
        [SERVICE_NAME],
    ) as server:
        stopped = until_signal()
        announce(server.address)
        await stopped


def _parse(arguments: Sequence[str] | None) -> PlannerConfig:
    default = PlannerConfig()
    parser = argparse.ArgumentParser(prog="python -m planner_svc", description="Makes plans for llmpq clusters.")
    parser.add_argument("--listen", default=default.listen, metavar="HOST:PORT", help="default %(default)s")
    parser.add_argument(
        "--time-limit",
        dest="time_limit_s",
        type=float,
        default=default.time_limit_s,
        metavar="SECONDS",
        help="time a search may take where the request sets none; default %(default)s",
    )
    parser.add_argument("--log-level", default=default.log_level, metavar="LEVEL", help="default %(default)s")
    return PlannerConfig(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
