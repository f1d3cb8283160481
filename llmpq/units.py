"""Sizes and times as people write them."""

import re

from llmpq.errors import InvalidInputError

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `150MB`, `12GiB` or `1000000`.

    Raises:
        InvalidInputError: Not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    size = round(float(match[1]) * _FACTORS[match[2] or ""]) if match else 0
    if size <= 0:
        raise InvalidInputError(f"'{text}' is not a size; write for example 150MB, 12GiB or 1000000.", subject="bytes")
    return size


def format_bytes(size: int) -> str:
    """A size for people, in decimal units: 151.2 MB."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(value) < 1000:  # noqa: PLR2004 decimal units
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """A duration for people, with two digits where it is short: 12.3 s, 0.047 s."""
    return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
