"""Where the command line speaks: documents and tables on standard output, everything else on standard error."""

import json
import os
import sys
from typing import Any

from rich.console import Console

#: Columns of tables where there is neither a terminal to fit them to nor COLUMNS.
_WIDTH = None if "COLUMNS" in os.environ else 120

#: NO_COLOR, COLUMNS and redirection are respected by rich. Brackets in names are no markup.
stdout = Console(width=None if sys.stdout.isatty() else _WIDTH, markup=False)
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
