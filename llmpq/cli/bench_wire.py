"""`llmpq bench wire`."""

from dataclasses import asdict
from typing import Annotated

import typer
import uvloop

from llmpq.bench.machine import describe_machine
from llmpq.bench.picture import Bar
from llmpq.bench.wire import WireTiming, time_wire
from llmpq.cli import bench_output
from llmpq.cli.bench_output import figure_table, publish
from llmpq.frames import MAX_FRAME_BYTES
from llmpq.units import format_bytes, parse_bytes

_DEFAULT_PAYLOADS = ["4KiB", "64KiB", "256KiB", "1MiB", "4MiB"]


def wire(
    *,
    payload: Annotated[list[str], typer.Option(help="Payload of a frame, as 64KiB; repeat it.")] = _DEFAULT_PAYLOADS,
    json_file: bench_output.JsonFile = "",
    picture: bench_output.Picture = None,
) -> None:
    """How fast frames travel to another process on this host and back.

    Over the local link, as between stages of one host, and over gRPC, as
    between hosts. Round trip of one frame at a time; bytes per second each way with four on
    their way; and the part of the round trip spent encoding and decoding.

    [bold]Examples[/bold]

      llmpq bench wire
      llmpq bench wire --payload 72KiB --json wire.json

    [bold]JSON keys[/bold]: machine, frames: transport, payload_bytes, round_trip_ms,
    bytes_per_s, serialization_share.
    """
    sizes = [parse_bytes(size) // 4 * 4 for size in payload]
    if not 0 < min(sizes) <= max(sizes) <= MAX_FRAME_BYTES:
        raise typer.BadParameter(f"A payload is from 4 bytes to {format_bytes(MAX_FRAME_BYTES)}.")
    machine = describe_machine()
    timings = uvloop.run(time_wire(sizes))
    table = figure_table(
        "Frames between two processes of this host",
        ("transport", "payload", "round trip ms", "each way", "serialization"),
        (
            (
                timing.transport,
                _size(timing),
                f"{timing.round_trip_ms:.3f}",
                _rate(timing),
                f"{timing.serialization_share:.0%}",
            )
            for timing in timings
        ),
    )
    bars = [
        Bar(
            f"{timing.transport}, {_size(timing)}",
            timing.bytes_per_s,
            f"{_rate(timing)}, {timing.round_trip_ms:.2f} ms there and back",
            is_ours=True,
        )
        for timing in timings
    ]
    document = {"machine": machine, "frames": [asdict(timing) for timing in timings]}
    publish(
        document, table, bars, title="Frames between two processes of one host", json_file=json_file, picture=picture
    )


def _size(timing: WireTiming) -> str:
    return format_bytes(timing.payload_bytes)


def _rate(timing: WireTiming) -> str:
    return f"{format_bytes(round(timing.bytes_per_s))}/s"
