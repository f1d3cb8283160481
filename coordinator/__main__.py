"""`python -m coordinator`: owns membership, jobs and the pipeline loop."""

import argparse
import sys
from pathlib import Path

from coordinator.config import CoordinatorConfig
from llmpq.collector import collector_paused
from llmpq.errors import MeshError


def main() -> int:
    """Runs the process; returns its exit code."""
    try:
        config = _parse_flags(sys.argv[1:])
        with collector_paused():
            import uvloop  # noqa: PLC0415 while it is paused

            from coordinator.server import run  # noqa: PLC0415 as above
            from llmpq.log import configure_logging  # noqa: PLC0415 as above
        configure_logging("coordinator", level=config.log_level)
        uvloop.run(run(config))
    except MeshError as error:
        print(f"coordinator: {error.message}", file=sys.stderr)  # noqa: T201 the way out of a command
        return 2
    return 0


def _parse_flags(argv: list[str]) -> CoordinatorConfig:
    defaults = CoordinatorConfig
    parser = argparse.ArgumentParser(prog="python -m coordinator", description=__doc__)
    parser.add_argument("--planner", required=True, metavar="HOST:PORT", help="the planner")
    parser.add_argument("--state", required=True, type=Path, metavar="DIR", help="where jobs and measurements are kept")
    parser.add_argument("--listen", default=defaults.listen, metavar="HOST:PORT", help="port 0 picks a free one")
    parser.add_argument(
        "--advertise",
        default=defaults.advertise,
        metavar="HOST:PORT",
        help="where the stages reach this process, if not at the address it listens on",
    )
    parser.add_argument("--max-queued-requests", type=int, default=defaults.max_queued_requests, metavar="N")
    parser.add_argument("--lease-ttl", dest="lease_ttl_s", type=float, default=defaults.lease_ttl_s, metavar="SECONDS")
    parser.add_argument("--log-level", default=defaults.log_level, choices=("debug", "info", "warning", "error"))
    return CoordinatorConfig(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
