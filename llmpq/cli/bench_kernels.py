"""`llmpq bench kernels`."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from llmpq.bench.machine import describe_machine
from llmpq.bench.picture import Bar
from llmpq.cli import bench_output
from llmpq.cli.bench_output import figure_table, publish
from llmpq.cluster_file import CPU_CLASSES

_COLUMNS = ("contender", "outputs x inputs", "rows", "ms", "GFLOP/s", "ratio", "path")


def kernels(
    *,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default.")] = None,
    cpu_class: Annotated[
        str, typer.Option(metavar="|".join(CPU_CLASSES), help="Hold the process to an older instruction set.")
    ] = "",
    shape: Annotated[list[str], typer.Option(metavar="OUTxIN", help="Size of a layer; repeat it.")] = [  # noqa: B006 typer's way
        "8192x2048",
        "2048x8192",
    ],
    rows: Annotated[list[int], typer.Option(min=1, help="Rows of the input; repeat it.")] = [1, 8, 32, 128, 512],  # noqa: B006 typer's way
    json_file: bench_output.JsonFile = "",
    picture: bench_output.Picture = None,
) -> None:
    """How fast linear layers of every scheme are on this CPU, beside torch's float32.

    All contenders of a size take turns and find their weights in memory, not in
    the cache. Times are medians; a ratio is to the faster of torch's two float32
    products (MKL and oneDNN).

    [bold]Examples[/bold]

      llmpq bench kernels --threads 2
      llmpq bench kernels --cpu-class avx2 --shape 2048x8192 --rows 1 --rows 32

    [bold]JSON keys[/bold]: machine, process (what the kernels ran on), timings: name, path,
    rows, in_features, out_features, ms, gflop_per_s, ratio.
    """
    if cpu_class not in {"", *CPU_CLASSES}:
        raise typer.BadParameter(f"'{cpu_class}' is not one of {', '.join(CPU_CLASSES)}.", param_hint="--cpu-class")
    for size in shape:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
            raise typer.BadParameter(f"'{size}' is not OUTxIN, such as 8192x2048.", param_hint="--shape")
    machine = describe_machine()
    flags = ["--threads", str(threads or len(os.sched_getaffinity(0))), "--cpu-class", cpu_class]
    flags += ["--shape", *shape, "--rows", *map(str, rows)]
    process, *timings = _documents([sys.executable, "-m", "stage_server.kernel_benchmark", *flags])
    table = figure_table(f"Linear layers, {process['threads']} thread(s)", _COLUMNS, map(_row, timings))
    bars = [
        Bar(
            f"{_size(timing)} {timing['rows']} rows: {timing['name']}", timing["ratio"], f"{timing['ratio']:.2f} x fp32"
        )
        for timing in timings
    ]
    document = {"machine": machine, "process": process, "timings": timings}
    publish(document, table, bars, title="Speed in multiples of float32", json_file=json_file, picture=picture)


def _documents(command: list[str]) -> Iterator[dict[str, Any]]:
    """The lines of JSON that a process prints; its errors are shown, and its failure is ours."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 our own
        for line in process.stdout or ():
            yield json.loads(line)
    if process.returncode:
        raise typer.Exit(process.returncode)


def _row(timing: dict[str, Any]) -> tuple[str, ...]:
    figures = f"{timing['ms']:.3f}", f"{timing['gflop_per_s']:.0f}", f"{timing['ratio']:.2f}"
    return timing["name"], _size(timing), str(timing["rows"]), *figures, timing["path"]


def _size(timing: dict[str, Any]) -> str:
    return f"{timing['out_features']}x{timing['in_features']}"
