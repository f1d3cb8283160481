"""`python -m stage_server.export`: exports a model on this host, as `llmpq export` asks it to.

What and how is an `ExportRequest` in JSON on standard input. Progress and errors go to standard error; the
`ExportReport`, as one line of JSON, to standard output.
"""

import json
import signal
import sys
import time
from dataclasses import asdict

from llmpq.errors import MeshError
from llmpq.messages import from_fields
from stage_server.config import StageConfig
from stage_server.device import open_device
from stage_server.export.exporter import export
from stage_server.export.request import ExportRequest
from stage_server.export.samples import calibration_samples

_LINE_EVERY_S = 5.0


def main() -> int:
    """Runs the process; returns its exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):  # of the parent's death too; what is half written is removed
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        request = from_fields(ExportRequest, json.load(sys.stdin))
        device = open_device(StageConfig(device=request.device))
        samples = calibration_samples(request.model) if request.options.rounding.needs_calibration else ()
        report = export(request, device, samples, _Progress().show)
    except (MeshError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 the way out of a command
        return 1
    print(json.dumps(asdict(report)))  # noqa: T201
    return 0


class _Progress:
    """Says every few seconds how far the export is."""

    def __init__(self) -> None:
        self._next_line_at = time.monotonic() + _LINE_EVERY_S

    def show(self, done: int, total: int) -> None:
        """Told of each layer."""
        if time.monotonic() >= self._next_line_at:
            print(f"Exporting: {done} of {total} layers.", file=sys.stderr)  # noqa: T201
            self._next_line_at = time.monotonic() + _LINE_EVERY_S


if __name__ == "__main__":
    sys.exit(main())
