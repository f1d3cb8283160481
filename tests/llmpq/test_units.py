"""Sizes as people write them."""

import pytest

from llmpq.errors import InvalidInputError
from llmpq.units import format_bytes, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000000", 10**6),
        ("150MB", 150 * 10**6),
        ("150 mb", 150 * 10**6),
        ("12GiB", 12 * 2**30),
        ("1.5k", 1500),
        ("2Ki", 2048),
        (" 7B ", 7),
    ],
)
def test_sizes_are_read_with_decimal_and_binary_units(text: str, size: int) -> None:
    """MB is 10^6, MiB is 2^20; case, spaces and the B do not matter."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "0", "1 TB", "1e9", "12 parsecs", "1,000"])
def test_what_is_not_a_positive_size_is_refused_with_an_example(text: str) -> None:
    """The error quotes the text and shows how a size is written."""
    with pytest.raises(InvalidInputError, match="is not a size; write for example 150MB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (151_234_567, "151.2 MB"), (8 * 10**13, "80.0 TB")],
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    """Decimal units, one decimal place."""
    assert format_bytes(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (0.0471, "0.047 s"), (1, "1.0 s"), (83.25, "83.2 s")])
def test_short_times_are_not_rounded_to_nothing(seconds: float, text: str) -> None:
    """Two digits below a second, one decimal place above."""
    assert format_seconds(seconds) == text
