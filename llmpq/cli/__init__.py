"""The command line: `llmpq --help`."""

import sys

from llmpq.cli.app import app
from llmpq.cli.terminal import complain
from llmpq.errors import MeshError


def main() -> None:
    """Runs a command; exits with 0 on success, 1 on failure, 2 on wrong usage and 130 after Ctrl-C."""
    try:
        app()
    except MeshError as error:
        complain(error.message)
        sys.exit(1)
    except OSError as error:
        complain(f"{error.filename or 'system'}: {error.strerror or error}")
        sys.exit(1)
