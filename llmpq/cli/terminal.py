"""Where the command line speaks: documents and tables on standard output, everything else on standard error."""

import json
from typing import Any

from rich.console import Console

#: NO_COLOR and redirection are respected by rich.
stdout = Console()
stderr = Console(stderr=True)


def print_json(document: Any) -> None:
    """Prints one JSON document, and nothing else, to standard output."""
    print(json.dumps(document, indent=2, default=str))  # noqa: T201 rich would wrap and colour it


def note(text: str) -> None:
    """Says what is going on, outside of the command's output."""
    stderr.print(text, highlight=False, markup=False, soft_wrap=True)


def complain(message: str) -> None:
    """Says what went wrong."""
    stderr.print("[bold red]error:[/bold red]", end=" ")
    note(message)
