"""`llmpq trace`."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from llmpq.batch import Batch
from llmpq.cli import options
from llmpq.cli.bench_output import figure_table
from llmpq.cli.connection import running
from llmpq.cli.terminal import note, print_json, stdout
from llmpq.client import Client
from llmpq.trace import FrameTrace, aligned, clock_offsets_ns, stage_times, transits_ns
from llmpq.trace_events import trace_document


def trace(
    *,
    batch_id: Annotated[str, typer.Argument(metavar="BATCH_ID", help="A batch that runs or ran lately.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", dir_okay=False, help="File for the trace, as trace.json.")
    ] = None,
    coordinator: options.RunningCoordinator = "",
    as_json: options.Json = False,
) -> None:
    """Show where the time of a batch went, and write a trace that Perfetto shows.

    For every stage: computing prefill and decode, waiting for input (nothing was
    there to compute) and for output (the next frame was there, but the one before
    was not yet on its way). The file holds a track of these for each stage, the
    micro-batches with arrows between stages, and the frames in flight; open it in
    https://ui.perfetto.dev. Clocks of several hosts are aligned by the quickest
    round of the frames; how far each was moved is in the file.

    [bold]Examples[/bold]

      llmpq trace 0c5e --coordinator host:50051
      llmpq trace 0c5e --coordinator host:50051 -o trace.json

    [bold]JSON keys[/bold]: batch_id, frames, wall_s, stages (device_id, prefill,
    decode, input, output: seconds; clock_moved_s), hops_ms (median of each).
    """
    batch, frames = asyncio.run(_fetch(running(coordinator), batch_id))
    device_ids = [stage.device_id for stage in batch.plan.stages] if batch.plan else []
    if output:
        output.write_text(json.dumps(trace_document(frames, device_ids)) + "\n", encoding="utf-8")
        note(f"Open {output} in https://ui.perfetto.dev.")
    summary = _summary(batch_id, frames, device_ids)
    if as_json:
        print_json(summary)
        return
    columns = ("stage", "prefill", "decode", "waiting for input", "waiting for output")
    rows = ([stage["device_id"], *(_share(stage, key) for key in _KINDS)] for stage in summary["stages"])
    stdout.print(figure_table(f"{len(frames)} frames in {summary['wall_s']:.2f} s", columns, rows))
    hops = ", ".join(f"{transit:.2f}" for transit in summary["hops_ms"])
    stdout.print(f"On the wire, median ms of each hop from the coordinator and back to it: {hops}")


_KINDS = ("prefill", "decode", "input", "output")


async def _fetch(client: Client, batch_id: str) -> tuple[Batch, tuple[FrameTrace, ...]]:
    async with client:
        return await client.get(batch_id), await client.trace(batch_id)


def _summary(batch_id: str, frames: Sequence[FrameTrace], device_ids: Sequence[str]) -> dict[str, Any]:
    """The spent time of each stage in seconds, by the coordinator's clock."""
    hops = zip(*map(transits_ns, aligned(frames)), strict=True)
    spent = zip(device_ids, stage_times(frames), clock_offsets_ns(frames), strict=False)
    begun = min((frame.sent_unix_ns for frame in frames), default=0)
    ended = max((frame.received_unix_ns for frame in frames), default=0)
    return {
        "batch_id": batch_id,
        "frames": len(frames),
        "wall_s": (ended - begun) / 1e9,
        "stages": [
            {"device_id": device, "clock_moved_s": -offset / 1e9}
            | {kind: getattr(times, kind) / 1e9 for kind in _KINDS}
            for device, times, offset in spent
        ],
        "hops_ms": [median(hop) / 1e6 for hop in hops],
    }


def _share(stage: dict[str, Any], kind: str) -> str:
    total = sum(stage[key] for key in _KINDS) or 1.0
    return f"{stage[kind]:.2f} s ({stage[kind] / total:.0%})"
