"""Results of a long measurement, kept on disk as they come, so that it can be taken up again."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Notebook:
    """Results by name, in a JSON file.

    Args:
        path: Of the file; what it holds already is not measured again.
        settings: That the results depend on.

    Raises:
        SystemExit: The file has results of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, str]) -> None:
        self._path = path
        self.results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"settings": dict(settings)}
        if self.results["settings"] != settings:
            raise SystemExit(f"{path} is of another run: {self.results['settings']}")
        self.results["machine"] = {"cores": os.cpu_count(), "system": platform.platform()}

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """The result of that name, measured unless it is there."""
        if name not in self.results:
            started = time.monotonic()
            self.results[name] = measure()
            print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
            self.save()
        return self.results[name]

    def save(self) -> None:
        """Writes everything."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.results, indent=1))
