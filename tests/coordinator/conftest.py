"""A coordinator over real gRPC between a fake planner and fake stages."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bench import Bench
from fake_planner import FakePlanner

from llmpq.cache_dir import CACHE_VARIABLE


@pytest.fixture(scope="session")
def imported_model(opt_bytes: str) -> str:
    """A byte-level model, all that reads it imported: that takes seconds, and the leases of these tests are short."""
    from coordinator.tokenizing import ModelTokenizer

    ModelTokenizer.load(opt_bytes)
    return opt_bytes


@pytest.fixture(autouse=True)
def _cache_of_each_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fake stages rate is seen by no other test."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
async def bench(tmp_path: Path, imported_model: str) -> AsyncIterator[Bench]:
    """A coordinator that is not running yet."""
    async with FakePlanner() as planner:
        yield Bench(tmp_path / "state", planner, imported_model)
