"""`llmpq profile`."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated

import typer

from llmpq.cli import options
from llmpq.cli.connection import MeshChoice, model_path
from llmpq.cli.progress import MeasuringBars
from llmpq.cli.tables import plain_table
from llmpq.cli.terminal import print_json, stdout
from llmpq.device import DeviceProfile, ModelPart, Phase
from llmpq.schemes import SCHEMES

#: Micro-batches that the table shows: the sequences of a decode step, and the tokens of one prompt.
_SHOWN_SEQUENCES, _SHOWN_TOKENS = 8, 128


def profile(
    *,
    model: Annotated[str, typer.Option(help="A Hugging Face directory or a .gguf file.")],
    coordinator: options.Coordinator = "",
    stages: options.Stages = None,
    scheme: options.Scheme = "",
    group: options.Group = None,
    int8_kv_cache: options.Int8KvCache = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")] = False,
    as_json: options.Json = False,
) -> None:
    """Measure how fast each device runs a model's layers, and the links.

    Planning does this by itself where it was not done. What was measured is
    kept by the coordinator, for each kind of device and shape of model, and
    all of it is shown. CPUs held to cores are measured while the others of
    their host compute.

    [bold]Examples[/bold]

      llmpq profile --model m.gguf --coordinator host:50051
      llmpq profile --model m.gguf --scheme w4 --fresh

    [bold]JSON keys[/bold]: profiles (a list of device_id, description, points,
    link_latency_ns, link_bytes_per_s, links).
    """
    mesh = MeshChoice.of_flags(coordinator, stages)
    plan_options = options.plan_options(is_local=mesh.is_local, scheme=scheme, group=group, int8_kv_cache=int8_kv_cache)

    async def measure() -> tuple[DeviceProfile, ...]:
        async with mesh.connect() as client:
            with MeasuringBars() as bars:
                return await client.profile_devices(
                    model_path(model),
                    plan_options=replace(plan_options, use_all_devices=False),
                    is_fresh=fresh,
                    on_status=bars.say,
                )

    profiles = asyncio.run(measure())
    if as_json:
        print_json({"profiles": [asdict(found) for found in profiles]})
    else:
        _show(profiles)


def _show(profiles: Sequence[DeviceProfile]) -> None:
    table = plain_table(
        "one layer, ms; the link from other processes",
        ("device", "scheme", f"prefill {_SHOWN_TOKENS}", f"decode {_SHOWN_SEQUENCES}", "points", "ms + ms/MB"),
    )
    for found in profiles:
        schemes = [scheme for scheme in SCHEMES if any(point.scheme == scheme for point in found.points)]
        link = (
            f"{found.link_latency_ns / 1e6:.2f} + {1e9 / found.link_bytes_per_s:.2f}" if found.link_bytes_per_s else ""
        )
        for number, scheme in enumerate(schemes):
            is_first = number == 0
            table.add_row(
                found.device_id if is_first else "",
                scheme,
                _nearest_ms(found, scheme, Phase.PREFILL, _SHOWN_TOKENS),
                _nearest_ms(found, scheme, Phase.DECODE, _SHOWN_SEQUENCES),
                str(len(found.points)) if is_first else "",
                link if is_first else "",
            )
    stdout.print(table)


def _nearest_ms(profile: DeviceProfile, scheme: str, phase: Phase, rows: int) -> str:
    """The measured point whose rows are the nearest, as `3.1 (126 rows)`."""
    points = [
        point for point in profile.points if (point.part, point.scheme, point.phase) == (ModelPart.LAYER, scheme, phase)
    ]
    if not points:
        return ""
    nearest = min(points, key=lambda point: (abs(point.num_sequences * point.num_tokens - rows), point.past_tokens))
    return f"{nearest.duration_ns / 1e6:.2f} ({nearest.num_sequences * nearest.num_tokens} rows)"
