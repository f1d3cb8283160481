"""Where the figures of `llmpq bench` go: a table on the terminal, a picture, a JSON document."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from llmpq.bench.machine import machine_line
from llmpq.bench.picture import Bar, bar_chart
from llmpq.cli.terminal import note, print_json, stdout

JsonFile = Annotated[
    str, typer.Option("--json", metavar="FILE|-", help="Also write all figures as one JSON document; - prints it only.")
]
Picture = Annotated[
    Path | None, typer.Option(dir_okay=False, metavar="FILE.svg", help="Also draw the figures as bars.")
]


def publish(
    document: dict[str, Any], table: Table, bars: Sequence[Bar], *, title: str, json_file: str, picture: Path | None
) -> None:
    """Shows the table, unless the document goes to standard output, and writes what files were asked for.

    Args:
        document: All figures, with `machine`.
        table: The same for people.
        bars: The same for the picture.
        title: Of the picture.
        json_file: File of the document, - for standard output, or empty.
        picture: File of the picture.
    """
    caption = machine_line(document["machine"])
    if json_file == "-":
        print_json(document)
    else:
        table.caption = caption
        stdout.print(table)
    if json_file not in {"", "-"}:
        Path(json_file).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        note(f"Figures are in {json_file}.")
    if picture:
        picture.write_text(bar_chart(title, bars, caption), encoding="utf-8")
        note(f"The picture is {picture}.")


def figure_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table whose first column holds names and whose others hold figures."""
    table = Table(
        title=f"\n{title}", title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def figure(value: float | None, digits: int = 1) -> str:
    """A figure for people; nothing where there is none."""
    return "" if value is None else f"{value:,.{digits}f}"
