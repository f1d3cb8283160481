"""`python -m stage_server`: serves one device."""

import argparse
import os
import sys

from llmpq.collector import collector_paused
from llmpq.errors import InvalidInputError
from llmpq.log import configure_logging
from llmpq.units import parse_bytes
from stage_server.config import StageConfig
from stage_server.cpu_class import CPU_CLASSES, available_cpu_classes, restrict_cpu


def main() -> int:
    """Runs the process; returns its exit code."""
    try:
        config = _parse(sys.argv[1:])
        configure_logging("stage_server", level=config.log_level)
        if config.device == "cpu":
            restrict_cpu(config.cpu_class, config.cores)
            # Weights and KV cache are read from end to end in every step: torch is to ask for large pages for them.
            os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        # torch reads the instruction set when it is imported, so everything that imports it waits until here.
        with collector_paused():
            import uvloop  # noqa: PLC0415

            from stage_server.server import run  # noqa: PLC0415

        uvloop.run(run(config))
    except InvalidInputError as error:
        print(f"stage_server: {error.message}", file=sys.stderr)  # noqa: T201 the way out of a command
        return 2
    return 0


def _parse(arguments: list[str]) -> StageConfig:
    default = StageConfig()
    parser = argparse.ArgumentParser(prog="python -m stage_server", description=__doc__)
    parser.add_argument("--device", default=default.device, help="cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--coordinator", default=default.coordinator, metavar="HOST:PORT", help="where to register")
    parser.add_argument(
        "--listen", default=default.listen, metavar="HOST:PORT", help="default: %(default)s, a free port"
    )
    parser.add_argument("--advertise", default=default.advertise, metavar="HOST:PORT", help="address for the others")
    parser.add_argument("--name", default=default.name, help="name in the cluster; default: host/device/port")
    parser.add_argument(
        "--memory-budget",
        type=parse_bytes,
        default=default.memory_budget,
        metavar="BYTES",
        help="for weights, KV cache and temporaries, e.g. 12GiB; default: 80%% of what is free",
    )
    parser.add_argument(
        "--cpu-class",
        choices=tuple(CPU_CLASSES),
        default=default.cpu_class,
        help="hold a CPU to an older instruction set; default: its newest",
    )
    parser.add_argument("--cores", type=_cores, default=default.cores, metavar="LIST", help="CPU cores, e.g. 0,2-3")
    parser.add_argument("--log-level", default=default.log_level, choices=("debug", "info", "warning", "error"))
    values = vars(parser.parse_args(arguments))
    if values["device"] == "cpu" and not values["cpu_class"]:
        values["cpu_class"] = next(iter(available_cpu_classes()), "")
    return StageConfig(**values)


def _cores(text: str) -> tuple[int, ...]:
    cores: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise argparse.ArgumentTypeError(f"'{text}' is not a list of cores such as 0,2-3")
        cores.extend(range(int(first), int(last or first) + 1))
    return tuple(cores)


if __name__ == "__main__":
    sys.exit(main())
