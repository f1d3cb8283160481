"""`llmpq up`."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from llmpq.cli import options
from llmpq.cli.terminal import note, print_json, stdout
from llmpq.cluster_file import ClusterSpec, read_cluster_file
from llmpq.local_mesh import local_mesh
from llmpq.rpc import until_signal


def up(
    *,
    cluster_file: Annotated[Path, typer.Argument(metavar="CLUSTER.yaml", help="The stage servers of this host.")],
    as_json: options.Json = False,
) -> None:
    r"""Start a cluster on this host and keep it running until Ctrl-C.

    That is planner, coordinator and stage servers. One that dies is reported
    and started again; batches go on where they stopped.

    [bold]Examples[/bold]

      llmpq up cluster.yaml

    with a cluster.yaml such as

      listen: 127.0.0.1:50051      # the coordinator; a free port by default
      state: ./state               # its jobs; a temporary directory by default
      stages:
        - name: fast               # unique
          device: cpu              # or cuda:0
          cpu_class: avx512        # or avx2, sse4; the best by default
          cores: \[0]               # all by default
          memory_budget: 150MB     # most of what is free by default
        - name: slow
          cores: \[1]

    [bold]JSON keys[/bold], printed once all stages are registered: coordinator, stages.
    Logs are on standard error.
    """
    asyncio.run(_up(read_cluster_file(cluster_file), as_json=as_json))


async def _up(cluster: ClusterSpec, *, as_json: bool) -> None:
    names = [stage.name for stage in cluster.stages]
    note(f"Starting planner, coordinator and {len(names)} stage(s) ...")
    async with local_mesh(cluster, on_log=_print_log, restarts=True) as coordinator:
        stopped = until_signal()
        if as_json:
            print_json({"coordinator": coordinator, "stages": names})
        else:
            stdout.print(f"Ready: the coordinator listens on {coordinator}; stages {', '.join(names)}.", soft_wrap=True)
            stdout.print(f"Try: llmpq status --coordinator {coordinator}", soft_wrap=True)
        await stopped
        note("Stopping ...")


def _print_log(name: str, line: str) -> None:
    note(f"{name} | {line}")
