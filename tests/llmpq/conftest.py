"""Fixtures of the tests of the client and the command line."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog
from fake_coordinator import FakeCoordinator, served
from terminal import Terminal


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The fake shares this process, so that its log would mix with the output of commands."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
async def coordinator() -> AsyncIterator[FakeCoordinator]:
    """A fake coordinator on this test's event loop."""
    fake = FakeCoordinator()
    async with served(fake):
        yield fake


@pytest.fixture
def background_coordinator() -> Iterator[FakeCoordinator]:
    """A fake coordinator on a loop of its own in another thread, for code that blocks or runs its own loop."""
    fake = FakeCoordinator()
    loop = asyncio.new_event_loop()
    is_serving, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with served(fake):
            is_serving.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert is_serving.wait(timeout=30)
    yield fake
    loop.call_soon_threadsafe(stop.set)
    thread.join(timeout=30)
    loop.close()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """Where commands are typed."""
    monkeypatch.delenv("LLMPQ_COORDINATOR", raising=False)
    return Terminal(monkeypatch, capsys)


@pytest.fixture
def address(background_coordinator: FakeCoordinator) -> str:
    """Where the fake coordinator listens."""
    return background_coordinator.address
