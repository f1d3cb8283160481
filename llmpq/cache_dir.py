"""Where this host keeps what can be made again: measurements, ratings, rounded weights, tensors from the Hub."""

import os
from pathlib import Path

from llmpq.errors import InvalidInputError
from llmpq.units import parse_bytes

#: Environment variable that names another directory.
CACHE_VARIABLE = "LLMPQ_CACHE"
#: Environment variable that says how much weights may take there, as `50GB`; 0 keeps none.
LIMIT_VARIABLE = "LLMPQ_CACHE_LIMIT"
DEFAULT_LIMIT_BYTES = 20 * 10**9


def cache_directory() -> Path:
    """$LLMPQ_CACHE, else llmpq in $XDG_CACHE_HOME or ~/.cache; whoever writes creates it."""
    if directory := os.environ.get(CACHE_VARIABLE):
        return Path(directory)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmpq"


def cache_limit_bytes() -> int:
    """Bytes that weights of one kind may take in the cache; 0 keeps none.

    Raises:
        InvalidInputError: $LLMPQ_CACHE_LIMIT is not a size.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return DEFAULT_LIMIT_BYTES
    try:
        return 0 if text == "0" else parse_bytes(text)
    except InvalidInputError as error:
        raise InvalidInputError(f"{LIMIT_VARIABLE}: {error.message}", subject=LIMIT_VARIABLE) from error
