"""Files that can be made again, in a directory of limited size: those not used for longest go first."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)


class LruDirectory:
    """A cache on disk, shared by all processes of a host without locks.

    A file is written under another name and then renamed, so readers see all of it or none; two processes that make the
    same file both write it. A file that is removed while it is read stays readable to whoever has it open.

    Args:
        directory: Where the files are; created when first written to.
        max_bytes: Limit on their sizes together; 0 keeps nothing.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    def find(self, name: str) -> Path | None:
        """The file of a name, which counts as used now; None if it is not there."""
        path = self._directory / name
        if not self._max_bytes or not path.is_file():
            return None
        with suppress(OSError):  # removed just now, or a cache that may only be read
            os.utime(path)
        return path

    def store(self, name: str, write: Callable[[Path], object]) -> Path | None:
        """Keeps what `write` writes to the path it is given, and makes room for it.

        Returns:
            The file; None where it cannot be kept: a full disk must not keep a stage from loading.
        """
        if not self._max_bytes:
            return None
        path = self._directory / name
        unfinished = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".unfinished", delete=False) as file:
                unfinished = Path(file.name)
            write(unfinished)
            unfinished.replace(path)
            self._make_room()
        except OSError as error:
            log.warning("cache.not_written", file=str(path), error=f"{type(error).__name__}: {error.strerror}")
        finally:
            if unfinished is not None:
                unfinished.unlink(missing_ok=True)
        return path if path.is_file() else None

    def _make_room(self) -> None:
        """Removes the files not used for longest, also what a crash has left unfinished, until the limit is kept."""
        used = []
        for path in self._directory.rglob("*"):
            with suppress(OSError):  # removed by another process
                if path.is_file():
                    stat = path.stat()
                    used.append((stat.st_mtime_ns, stat.st_size, path))
        excess = sum(size for _, size, _ in used) - self._max_bytes
        for _, size, path in sorted(used):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size
