"""What is kept of a model's files, and for how long."""

from pathlib import Path
from typing import Any

import pytest

from llmpq.device import LinkProfile
from llmpq.made_once import made_once
from llmpq.measurements import MeasurementCache


class Maker:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.num_made = 0

    def __call__(self) -> dict[str, Any]:
        """Something new each time."""
        self.num_made += 1
        return {"number": self.num_made, "pair": (1, 2)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("LLMPQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_made_once_for_the_same_files(cache: Path) -> None:
    """Later askers get what the first one did, which has gone through JSON too; other files have their own."""
    make = Maker()
    first = made_once("things", "one", make)

    assert first == made_once("things", "one", make) == {"number": 1, "pair": [1, 2]}
    assert made_once("things", "another", make)["number"] == 2
    assert made_once("others", "one", make)["number"] == 3
    assert {path.name for path in cache.iterdir()} == {"things", "others"}


@pytest.mark.usefixtures("cache")
def test_another_version_of_a_package_or_of_the_code_makes_it_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an older transformers, or older code of ours, has made is not taken."""
    make = Maker()
    made_once("things", "one", make)
    monkeypatch.setattr("llmpq.made_once.version", lambda package: f"{package} of tomorrow")
    assert made_once("things", "one", make)["number"] == 2
    monkeypatch.setattr("llmpq.made_once.code_digest", lambda _: "other code")
    assert made_once("things", "one", make)["number"] == 3


def test_a_damaged_entry_is_made_anew(cache: Path) -> None:
    """A file that is cut short is replaced."""
    make = Maker()
    made_once("things", "one", make)
    [path] = (cache / "things").iterdir()
    path.write_text('{"number": ')

    assert made_once("things", "one", make)["number"] == 2
    assert made_once("things", "one", make)["number"] == 2


def test_a_cache_that_cannot_be_written_costs_time_only(cache: Path) -> None:
    """Where a file stands in the cache's place, it is made each time."""
    cache.write_text("")
    make = Maker()

    assert [made_once("things", "one", make)["number"] for _ in range(2)] == [1, 2]


def test_a_measurement_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    """Damaged files and those of fields that no longer exist are measured again."""
    measurements = MeasurementCache(tmp_path)
    measurements.save("subject", [LinkProfile("a", 1, 2)])
    assert measurements.load(LinkProfile, "subject") == (LinkProfile("a", 1, 2),)
    [path] = tmp_path.iterdir()

    for text in ("[{", '[{"latency_ns": "long"}]'):
        path.write_text(text)
        assert measurements.load(LinkProfile, "subject") is None
    assert measurements.load(LinkProfile, "another") is None
