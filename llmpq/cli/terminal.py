"""Where the command line speaks: documents and tables on standard output, everything else on standard error."""

import json
import sys
from typing import Any

from rich.console import Console

#: Columns of tables where there is no terminal to fit them to.
_WIDTH = 120

#: NO_COLOR and redirection are respected by rich.
stdout = Console(width=None if sys.stdout.isatty() else _WIDTH)
stderr = Console(stderr=True, width=None if sys.stderr.isatty() else _WIDTH)


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
