"""Where this host keeps what can be made again: kernel measurements, rounded weights."""

import os
from pathlib import Path

#: Environment variable that names another directory.
CACHE_VARIABLE = "LLMPQ_CACHE"


def cache_directory() -> Path:
    """$LLMPQ_CACHE, else llmpq in $XDG_CACHE_HOME or ~/.cache; whoever writes creates it."""
    if directory := os.environ.get(CACHE_VARIABLE):
        return Path(directory)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmpq"
