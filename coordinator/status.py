"""Telling people what is being done."""

from collections.abc import Callable

#: Takes one sentence on what is being done.
Report = Callable[[str], None]


def counting(report: Report, doing: str, unit: str) -> Callable[[int, int], None]:
    """Reports how far a measurement is."""
    return lambda done, total: report(f"{doing}: {done} of {total} {unit}.")
