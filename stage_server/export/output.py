"""The directory that an export writes: a model is there once all of it is."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmpq.errors import ConflictError

#: What makes a directory a model; moved last.
_CONFIG = "config.json"


@contextmanager
def appearing(directory: Path) -> Iterator[Path]:
    """A folder inside `directory` to write to, whose files move up when the block ends, or vanish if it fails.

    Inside, because a directory that is there may be a mount point or a shell's own, which cannot be replaced. Nothing
    is removed but what was made here.

    Raises:
        ConflictError: `directory` is not empty, or is no directory; another export may have begun there.
        OSError: It cannot be written to.
    """
    is_new = _is_made(directory)
    unfinished = Path(tempfile.mkdtemp(dir=directory, prefix=".unfinished-"))
    try:
        if others := [path.name for path in directory.iterdir() if path != unfinished]:
            raise _taken(directory, f" (it has '{others[0]}')")
        yield unfinished
        for path in sorted(unfinished.iterdir(), key=lambda path: path.name == _CONFIG):
            path.rename(directory / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # it is not empty: the export is there
                directory.rmdir()


def _is_made(directory: Path) -> bool:
    """Makes a directory; whether it was not there."""
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        if not directory.is_dir():
            raise _taken(directory) from None
        return False
    return True


def _taken(directory: Path, why: str = "") -> ConflictError:
    message = f"'{directory}' exists and is not an empty directory{why}; name another."
    return ConflictError(message, subject=str(directory))
