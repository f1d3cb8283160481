"""The compute thread's work on frames: in order, within bounds, and no more once it is stopped."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from llmpq.device import Phase
from llmpq.frames import DataType, Frame
from stage_server.frame_worker import FrameWorker

FRAME = Frame("d", 0, Phase.DECODE, [0], [0], [1], DataType.INT32, (1,), bytes(4))
#: As long as a test waits for what must not happen.
A_WHILE_S = 0.2


class Computing:
    """Gives frames back, and remembers which it was given."""

    def __init__(self) -> None:
        self.frame_ids: list[int] = []

    def __call__(self, frame: Frame, *_: int) -> Frame:
        """Computes nothing."""
        self.frame_ids.append(frame.frame_id)
        return frame


@asynccontextmanager
async def working(compute: Callable[[Frame, int, int], Frame]) -> AsyncIterator[tuple[FrameWorker, ThreadPoolExecutor]]:
    """A worker and the thread that it works on."""
    with ThreadPoolExecutor(1) as executor:
        worker = FrameWorker(executor, lambda frame: len(frame.payload), compute)
        try:
            yield worker, executor
        finally:
            worker.stop()


async def test_results_come_in_the_order_of_the_frames() -> None:
    """Whatever is put is computed once, in order, and the thread serves others between frames."""
    async with working(lambda frame, *_: frame) as (worker, executor):
        for first in (0, 10):
            for number in range(first, first + 10):
                worker.put(replace(FRAME, frame_id=number))
            for number in range(first, first + 10):
                assert (await worker.result()).frame_id == number
                worker.sent()
            assert executor.submit(lambda: 7).result(5) == 7
        assert not worker.is_busy


async def test_no_more_is_computed_than_can_be_sent() -> None:
    """While two results wait to be sent, no third one is made; it is once one of them has gone."""
    compute = Computing()
    async with working(compute) as (worker, _):
        for number in range(4):
            worker.put(replace(FRAME, frame_id=number))
        await asyncio.sleep(A_WHILE_S)
        assert compute.frame_ids == [0, 1]
        await worker.result()
        worker.sent()
        await asyncio.sleep(A_WHILE_S)
        assert compute.frame_ids == [0, 1, 2]


async def test_unsent_results_do_not_hold_the_thread() -> None:
    """With no frame to compute the thread serves others, even if results wait to be sent."""
    async with working(lambda frame, *_: frame) as (worker, executor):
        for number in range(2):
            worker.put(replace(FRAME, frame_id=number))
        await asyncio.to_thread(executor.submit(lambda: None).result, 5)
        assert not worker.is_busy


async def test_there_is_room_for_one_large_frame_beside_the_computed_one() -> None:
    """Large frames are taken up one ahead; when computing goes on, there is room again."""
    may_compute = threading.Event()

    def compute(frame: Frame, *_: int) -> Frame:
        may_compute.wait(30)
        return frame

    large = replace(FRAME, payload=bytes(5 * 2**20))
    async with working(compute) as (worker, _):
        worker.put(large)
        await asyncio.wait_for(worker.has_room.wait(), 5)
        worker.put(large)
        assert not worker.has_room.is_set()
        may_compute.set()
        await asyncio.wait_for(worker.has_room.wait(), 5)


async def test_what_computing_raises_is_raised_where_results_are_awaited() -> None:
    """A kernel that fails is not lost on its thread."""

    def compute(_frame: Frame, *_: int) -> Frame:
        raise ZeroDivisionError

    async with working(compute) as (worker, executor):
        worker.put(FRAME)
        worker.put(FRAME)
        with pytest.raises(ZeroDivisionError):
            await worker.result()
        await asyncio.to_thread(executor.submit(lambda: None).result, 5)


async def test_a_stopped_worker_leaves_its_thread() -> None:
    """After a stop nothing that waits is computed, even if results could not be sent, and the thread is free."""
    compute = Computing()
    async with working(compute) as (worker, executor):
        for number in range(4):
            worker.put(replace(FRAME, frame_id=number))
        await asyncio.sleep(A_WHILE_S)
        worker.stop()
        await asyncio.to_thread(executor.submit(lambda: None).result, 5)
    assert compute.frame_ids == [0, 1]
