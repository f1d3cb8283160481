"""`python -m planner_svc`: serves the planner until SIGTERM or SIGINT."""

import argparse
from collections.abc import Sequence

from llmpq.collector import collector_paused
from planner_svc.config import PlannerConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and serves."""
    config = _parse(arguments)
    with collector_paused():
        import uvloop  # noqa: PLC0415 while it is paused

        from llmpq.log import configure_logging  # noqa: PLC0415 as above
        from planner_svc.server import run  # noqa: PLC0415 as above
    configure_logging("planner", level=config.log_level)
    uvloop.run(run(config))


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
