"""`python -m stage_server.export`: exports a model on this host; what and how is a JSON document on standard input.

Progress goes to standard error; the report, as one line of JSON, to standard output.
"""

import json
import sys
from dataclasses import asdict

from llmpq.errors import MeshError
from llmpq.messages import from_fields
from stage_server.config import StageConfig
from stage_server.device import open_device
from stage_server.export.exporter import export
from stage_server.export.request import ExportRequest


def main() -> int:
    """Runs the process; returns its exit code."""
    try:
        request = from_fields(ExportRequest, json.load(sys.stdin))
        report = export(request, open_device(StageConfig(device=request.device)), (), _show)
    except MeshError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 the way out of a command
        return 1
    print(json.dumps(asdict(report)))  # noqa: T201
    return 0


def _show(done: int, total: int) -> None:
    print(f"Exporting: {done} of {total} layers.", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
