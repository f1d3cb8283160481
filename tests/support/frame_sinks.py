"""Receivers of frames for tests of the data plane."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from llmpq.errors import MeshError
from llmpq.frames import Frame
from llmpq.rpc.frame_sink import FrameSink


class CollectingSink(FrameSink):
    """Keeps what it receives.

    Args:
        refusal: Raised for every frame but the first, if given.

    Attributes:
        frames: What came.
        room: Its `has_room`.
    """

    def __init__(self, refusal: Exception | None = None) -> None:
        self.frames: list[Frame] = []
        self.room = asyncio.Event()
        self.room.set()
        self._refusal = refusal

    def take(self, frame: Frame) -> None:
        """Keeps it."""
        if self.frames and self._refusal:
            raise self._refusal
        self.frames.append(frame)

    @property
    def has_room(self) -> asyncio.Event:
        """As the test says."""
        return self.room


class TaskSink(FrameSink):
    """Gives one frame after another to a coroutine function; what it raises ends the stream.

    Args:
        check: Called with each frame as it comes; may refuse it.
        handle: The function.
    """

    def __init__(self, check: Callable[[Frame], None], handle: Callable[[Frame], Coroutine[Any, Any, None]]) -> None:
        self._check = check
        self._frames: asyncio.Queue[Frame] = asyncio.Queue()
        self._failure: asyncio.Future[MeshError] = asyncio.get_running_loop().create_future()
        self._handling = asyncio.ensure_future(self._run(handle))

    def take(self, frame: Frame) -> None:
        """Queues it."""
        self._check(frame)
        self._frames.put_nowait(frame)

    @property
    def failure(self) -> "asyncio.Future[MeshError]":
        """What the function raised."""
        return self._failure

    async def _run(self, handle: Callable[[Frame], Coroutine[Any, Any, None]]) -> None:
        try:
            while True:
                await handle(await self._frames.get())
        except MeshError as error:
            self._failure.set_result(error)
