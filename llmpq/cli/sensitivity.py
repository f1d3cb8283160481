"""`llmpq sensitivity`."""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.bar import Bar
from rich.table import Table

from llmpq.cli import options
from llmpq.cli.connection import MeshChoice, model_path
from llmpq.cli.progress import StatusLines
from llmpq.cli.terminal import print_json, stdout
from llmpq.plan import LayerSensitivity, PlanOptions
from llmpq.schemes import SCHEMES

_EXACT = "w16"
#: Columns that a scheme takes besides its bar: the figure and what separates them.
_FIGURE_WIDTH = 10
_LAYER_WIDTH = 9
_BAR_WIDTHS = (4, 24)
#: Decades that bars span at most; what is smaller has none.
_MAX_DECADES = 6


def sensitivity(
    *,
    model: Annotated[str, typer.Option(help="A Hugging Face directory or a .gguf file.")],
    indicator: options.Indicator = "",
    schemes: Annotated[
        list[str],
        typer.Option(
            "--scheme",
            metavar="|".join(SCHEMES),
            help="Rate this one; may be given again. All that the devices can run if none is.",
        ),
    ] = [],  # noqa: B006 typer's way to say that none is needed
    coordinator: options.Coordinator = "",
    stages: options.Stages = None,
    group: options.Group = None,
    rounding: options.RoundingMethod = "",
    symmetric: options.Symmetric = False,
    output: options.DocumentFile = None,
    as_json: options.Json = False,
) -> None:
    """Show what quantizing each layer costs in quality.

    These are the figures that plans are made by. They are relative: w4 on
    every layer is 1 in all. What was measured once is kept by the coordinator.

    [bold]Examples[/bold]

      llmpq sensitivity --model m.gguf
      llmpq sensitivity --model m.gguf --indicator loss --scheme w4 --scheme w3
      llmpq sensitivity --model m.gguf --coordinator host:50051 --output m.json

    [bold]JSON keys[/bold]: model, indicator, rounding, symmetric, group, layers (a list
    of layer and omega, by scheme), total (the sum over layers, by scheme).
    """
    for scheme in schemes:
        options.known_scheme(scheme)
    if set(schemes) == {_EXACT}:
        raise typer.BadParameter(f"{_EXACT} is what the others are compared with, and costs nothing.")
    mesh = MeshChoice.of_flags(coordinator, stages)
    given = options.plan_options(
        is_local=mesh.is_local, group=group, rounding=rounding, symmetric=symmetric, indicator=indicator
    )
    plan_options = replace(given, allowed_schemes=tuple(schemes))
    ratings = asyncio.run(_rate(mesh, model_path(model), plan_options))
    document = describe(model, plan_options, ratings)
    if as_json:
        print_json(document)
    else:
        stdout.print(picture(document, stdout.width))
    if output is not None:  # after the rest, for its disk may be full
        output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def describe(model: str, plan_options: PlanOptions, ratings: Sequence[LayerSensitivity]) -> dict[str, Any]:
    """Ratings as a document; schemes from the most to the least exact."""
    omegas = {(rating.layer, rating.scheme): rating.omega for rating in ratings}
    layers = sorted({rating.layer for rating in ratings})
    schemes = [scheme for scheme in SCHEMES if (layers[0], scheme) in omegas]
    return {
        "model": model,
        "indicator": plan_options.effective_indicator,
        "rounding": plan_options.rounding.effective_method,
        "symmetric": plan_options.rounding.is_symmetric,
        "group": plan_options.effective_group_size,
        "layers": [
            {"layer": layer, "omega": {scheme: omegas[layer, scheme] for scheme in schemes}} for layer in layers
        ],
        "total": {scheme: sum(omegas[layer, scheme] for layer in layers) for scheme in schemes},
    }


def picture(document: Mapping[str, Any], width: int) -> Table:
    """A bar for each layer and scheme, on one logarithmic scale, for they differ by orders of magnitude; not of w16."""
    schemes = [scheme for scheme in document["total"] if scheme != _EXACT]
    scale = _Scale([row["omega"][scheme] for row in document["layers"] for scheme in schemes])
    shortest, longest = _BAR_WIDTHS
    bar_width = min(longest, max(shortest, (width - _LAYER_WIDTH) // len(schemes) - _FIGURE_WIDTH))
    table = Table(
        title=f"\n{Path(document['model']).name}: {document['indicator']}, {document['rounding']} rounding, "
        f"{_grouping(document['group'])}",
        caption=f"w4 on every layer costs 1; bars are logarithmic, from {scale.start:g} to {scale.end:g}",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        show_footer=True,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layer", "all", justify="right", no_wrap=True)
    for scheme in schemes:
        table.add_column(scheme, f"{document['total'][scheme]:.3g}", justify="right", no_wrap=True)
        table.add_column("", width=bar_width)
    for row in document["layers"]:
        omegas = [row["omega"][scheme] for scheme in schemes]
        cells = [(f"{omega:.3g}", Bar(1, 0, scale.share(omega), width=bar_width)) for omega in omegas]
        table.add_row(str(row["layer"]), *(part for cell in cells for part in cell))
    return table


class _Scale:
    """Whole decades, at most `_MAX_DECADES` of them, up to the largest value."""

    def __init__(self, values: Sequence[float]) -> None:
        exponents = [math.log10(value) for value in values if value > 0] or [0.0]
        last = math.ceil(max(exponents))
        self._first = min(last - 1, max(math.floor(min(exponents)), last - _MAX_DECADES))
        self._decades = last - self._first

    @property
    def start(self) -> float:
        """Where bars begin."""
        return 10.0**self._first

    @property
    def end(self) -> float:
        """Where the longest bar would end."""
        return 10.0 ** (self._first + self._decades)

    def share(self, value: float) -> float:
        """How far along the scale a value is, 0 to 1."""
        return max(0.0, math.log10(value / self.start) / self._decades) if value > 0 else 0.0


def _grouping(group_size: int) -> str:
    return f"groups of {group_size}" if group_size else "per channel"


async def _rate(mesh: MeshChoice, model: str, plan_options: PlanOptions) -> tuple[LayerSensitivity, ...]:
    async with mesh.connect() as client:
        return await client.rate_layers(model, plan_options=plan_options, on_status=StatusLines().say)
