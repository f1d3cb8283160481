"""`llmpq bench startup`."""

from dataclasses import asdict
from statistics import median
from typing import Annotated

import typer

from llmpq.bench.machine import describe_machine
from llmpq.bench.picture import Bar
from llmpq.bench.startup import time_startup
from llmpq.cli import bench_output, options
from llmpq.cli.bench_output import figure_table, publish
from llmpq.cli.connection import model_path


def startup(
    *,
    model: Annotated[str, typer.Option(help="A Hugging Face directory or a .gguf file.")],
    stages: Annotated[int, typer.Option(min=1, help="Stage servers that share this machine's cores.")] = 2,
    scheme: options.Scheme = "",
    runs: Annotated[int, typer.Option(min=1, help="Pairs of a first and a second run; figures are medians.")] = 3,
    json_file: bench_output.JsonFile = "",
    picture: bench_output.Picture = None,
) -> None:
    """Seconds from the command to the first token: the first time on a host, and the second.

    Runs `llmpq run-batch` on one request for one token, from an empty cache and
    then from the cache that the first run left.

    [bold]Examples[/bold]

      llmpq bench startup --model m.gguf
      llmpq bench startup --model m.gguf --scheme w8a8 --stages 1

    [bold]JSON keys[/bold]: machine, model, stages, scheme (null if planned), first_s, second_s,
    runs: first_s, second_s.
    """
    machine = describe_machine()
    flags = ["--model", model_path(model), "--stages", str(stages)] + (["--scheme", scheme] if scheme else [])
    pairs = [time_startup(flags) for _ in range(runs)]
    medians = {"first": median(pair.first_s for pair in pairs), "second": median(pair.second_s for pair in pairs)}
    document = {
        "machine": machine,
        "model": model,
        "stages": stages,
        "scheme": scheme or None,
        "first_s": medians["first"],
        "second_s": medians["second"],
        "runs": [asdict(pair) for pair in pairs],
    }
    title = "From the command to the first token"
    table = figure_table(title, ("run", "seconds"), ((name, f"{value:.2f}") for name, value in medians.items()))
    bars = [Bar(f"{name} run", value, f"{value:.2f} s", is_ours=True) for name, value in medians.items()]
    publish(document, table, bars, title=title, json_file=json_file, picture=picture)
