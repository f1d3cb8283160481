"""What has been measured once and holds until what was measured changes: a JSON file each."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from llmpq.errors import InvalidInputError
from llmpq.messages import from_fields
from llmpq.whole_file import write_whole

T = TypeVar("T")


class MeasurementCache:
    """Lists of dataclasses by what they depend on.

    Args:
        directory: Where the files are; created if missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, cls: type[T], subject: object) -> tuple[T, ...] | None:
        """What was saved for `subject`; None if nothing was, or nothing that is still a `cls`.

        Args:
            cls: Dataclass of the entries.
            subject: All that the measurement depends on, as a value that JSON can hold.
        """
        try:
            entries = json.loads(self._path(cls, subject).read_text(encoding="utf-8"))
            return tuple(from_fields(cls, fields) for fields in entries)
        except (OSError, ValueError, InvalidInputError):
            return None

    def save(self, subject: object, measured: Sequence[Any]) -> None:
        """Saves a measurement, never empty; a crash leaves the file whole or absent. Raises OSError."""
        write_whole(self._path(type(measured[0]), subject), json.dumps([asdict(entry) for entry in measured]))

    def _path(self, cls: type[Any], subject: object) -> Path:
        digest = hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()
        return self._directory / f"{cls.__name__}-{digest[:32]}.json"
