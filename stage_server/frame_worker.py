"""Frames on the compute thread: one after another, without waiting for the event loop between two of them."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from threading import Condition
from typing import Generic, TypeVar

from llmpq.frames import Frame

T = TypeVar("T")

#: While frames of more bytes wait to be computed, no further ones are taken up: small ones never wait for that, and of
#: large ones only the next is in memory beside the one that is computed.
_MAX_WAITING_BYTES = 4 * 2**20
#: Results that wait to be sent, beyond which nothing is computed: the next stage takes no more.
_MAX_UNSENT = 2


class FrameWorker(Generic[T]):
    """Computes frames in the order in which they come.

    The thread is taken while there are frames, and left to others between them.

    Args:
        executor: Of the one compute thread.
        prepare: Called with a frame as it comes, on the event loop.
        compute: Makes the result of a frame, on that thread; is also given what `prepare` made of it, and when it came
            (perf_counter_ns).

    Attributes:
        has_room: Set while further frames may be put.
    """

    def __init__(
        self, executor: Executor, prepare: Callable[[Frame], T], compute: Callable[[Frame, T, int], Frame]
    ) -> None:
        self._executor = executor
        self._prepare = prepare
        self._compute = compute
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[tuple[Frame, T, int]] = deque()
        self._results: asyncio.Queue[Frame | Exception] = asyncio.Queue()
        self._changed = Condition()
        self._is_at_work = self._is_stopped = False
        self._waiting_bytes = self._num_unsent = 0
        self.has_room = asyncio.Event()
        self.has_room.set()

    @property
    def is_busy(self) -> bool:
        """Whether a frame is being computed or waits for it."""
        return self._is_at_work

    def put(self, frame: Frame) -> None:
        """Takes a frame; call it on the event loop."""
        arrived = frame, self._prepare(frame), time.perf_counter_ns()
        with self._changed:
            self._arrived.append(arrived)
            self._waiting_bytes += len(frame.payload)
            is_at_work, self._is_at_work = self._is_at_work, True
        self._look_for_room()
        if not is_at_work:
            self._executor.submit(self._work)

    async def result(self) -> Frame:
        """The next result. Raises what computing it raised."""
        result = await self._results.get()
        if isinstance(result, Exception):
            raise result
        return result

    def sent(self) -> None:
        """Takes that a result has been sent."""
        with self._changed:
            self._num_unsent -= 1
            self._changed.notify()

    def stop(self) -> None:
        """Computes nothing more after the frame that is being computed."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    def _work(self) -> None:
        while (arrived := self._next()) is not None:
            try:
                result: Frame | Exception = self._compute(*arrived)
            except Exception as error:  # noqa: BLE001 raised again where results are awaited
                result = error
                self.stop()  # the frames behind it would meet a cache without its tokens
            self._loop.call_soon_threadsafe(self._results.put_nowait, result)

    def _next(self) -> tuple[Frame, T, int] | None:
        """The next frame once its result may be made; None if there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or not self._arrived or self._num_unsent < _MAX_UNSENT)
            if self._is_stopped or not self._arrived:
                self._is_at_work = False
                return None
            arrived = self._arrived.popleft()
            had_room = self._waiting_bytes <= _MAX_WAITING_BYTES
            self._waiting_bytes -= len(arrived[0].payload)
            self._num_unsent += 1
        if not had_room:
            self._loop.call_soon_threadsafe(self._look_for_room)
        return arrived

    def _look_for_room(self) -> None:
        if self._waiting_bytes > _MAX_WAITING_BYTES:
            self.has_room.clear()
        else:
            self.has_room.set()
