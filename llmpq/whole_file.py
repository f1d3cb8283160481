"""Files that are there as a whole or not at all."""

import tempfile
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a file beside its place and renames it: whoever reads, also after a crash, finds all of it or none.

    Args:
        path: Its place; directories that are missing are made.
        text: Kept as UTF-8.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".new", delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).replace(path)
