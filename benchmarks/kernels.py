"""How fast linear layers of every scheme are on this CPU, by number of rows, beside torch's float32 product.

    python benchmarks/kernels.py --threads 2 [--cpu-class avx2] [--shape OUTxIN ...] [--rows N ...] [--json FILE]

All contenders of a size take turns, so that what disturbs one disturbs all, and each finds its weights in memory, not
in the cache: between two of its runs the others have read theirs. Times are medians. Ratios are to the faster of
torch's two float32 products. Beside our schemes stand torch's own operators for quantized weights.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

from stage_server.cpu_class import CPU_CLASSES, restrict_cpu


def main() -> None:
    """Prints a line for each contender and size; writes all, with the machine, as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cpu-class", default="", choices=["", *CPU_CLASSES], help="hold the process to an older CPU")
    parser.add_argument("--shape", nargs="+", default=["8192x2048", "2048x8192"], help="outputs x inputs")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 128, 512])
    parser.add_argument("--json", type=Path, help="also write to this file")
    settings = parser.parse_args()
    restrict_cpu(settings.cpu_class, tuple(sorted(os.sched_getaffinity(0)))[: settings.threads])
    import cpu_timings  # noqa: PLC0415 brings torch, on which limits take effect only before

    machine = cpu_timings.describe_machine()
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    timings = []
    for shape in settings.shape:
        out_features, in_features = map(int, shape.split("x"))
        contenders = cpu_timings.make_contenders(out_features, in_features)
        print(f"\n{in_features} inputs, {out_features} outputs\n{cpu_timings.HEADER}")
        for rows in settings.rows:
            for timing in cpu_timings.time_contenders(contenders, in_features, out_features, rows):
                print(timing)
                timings.append(timing)
    if settings.json:
        document = {"machine": machine, "timings": [asdict(timing) for timing in timings]}
        settings.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
