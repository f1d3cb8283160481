"""`llmpq bench`: its table of contents."""

import typer

from llmpq.cli.bench_kernels import kernels
from llmpq.cli.bench_startup import startup
from llmpq.cli.bench_throughput import throughput
from llmpq.cli.bench_wire import wire

bench = typer.Typer(no_args_is_help=True, help="Measure speed on this machine: of the mesh, its parts, and others.")
bench.command("throughput")(throughput)
bench.command("wire")(wire)
bench.command("kernels")(kernels)
bench.command("startup")(startup)
