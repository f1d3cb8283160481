"""`python -m stage_server.kernel_benchmark`: times kernels on this host's CPU, as `llmpq bench kernels` asks it to.

A process of its own: cores and instruction sets can be limited only before torch is loaded. Prints a line of JSON for
what it runs on, and one for each timing as it comes.
"""

import argparse
import json
import os
from dataclasses import asdict

from stage_server.cpu_class import CPU_CLASSES, restrict_cpu


def main() -> None:
    """Runs the process."""
    parser = argparse.ArgumentParser(prog="python -m stage_server.kernel_benchmark")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cpu-class", default="", choices=["", *CPU_CLASSES])
    parser.add_argument("--shape", nargs="+", required=True, metavar="OUTxIN")
    parser.add_argument("--rows", nargs="+", type=int, required=True)
    settings = parser.parse_args()
    restrict_cpu(settings.cpu_class, tuple(sorted(os.sched_getaffinity(0)))[: settings.threads])
    from quantizer import kernel_timings  # noqa: PLC0415 brings torch, on which limits take effect only before

    print(json.dumps(kernel_timings.describe_process()), flush=True)  # noqa: T201 read by the parent
    for shape in settings.shape:
        out_features, in_features = map(int, shape.split("x"))
        contenders = kernel_timings.make_contenders(out_features, in_features)
        for rows in settings.rows:
            for timing in kernel_timings.time_contenders(contenders, in_features, out_features, rows):
                print(json.dumps(asdict(timing)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
