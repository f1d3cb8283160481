"""`llmpq bench`: its table of contents."""

import typer

from llmpq.cli.bench_throughput import throughput

bench = typer.Typer(no_args_is_help=True, help="Measure speed on this machine: of the mesh, its parts, and others.")
bench.command("throughput")(throughput)
