"""The loop that drives a deployment: schedule, send, receive, record."""

import asyncio
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Never

from coordinator.deployment import Deployment
from coordinator.racing import unless
from coordinator.traces import FrameLog
from llmpq.errors import InternalError, UnavailableError
from llmpq.frames import DataType, Frame, FrameOutput, StageTiming
from llmpq.schedule.scheduler import MicroBatch, Scheduler
from llmpq.schedule.sequence import Sequence as TokenSequence

#: A frame that takes longer than this is lost, even if every stage says that it is alive.
FRAME_TIMEOUT_S = 600.0

#: Takes a micro-batch that came back, its times in the stages, and the sequences that it moved on.
OnResult = Callable[[MicroBatch, Sequence[StageTiming], Sequence[TokenSequence]], None]


class Pipeline:
    """Runs sequences through a deployment.

    Args:
        deployment: The stages.
        scheduler: The sequences.
        on_result: Told of every result once the next micro-batches are on their way.
        frames: Told of every micro-batch as it is sent and as it comes back.
    """

    def __init__(
        self,
        deployment: Deployment,
        scheduler: Scheduler,
        on_result: OnResult,
        frames: FrameLog,
    ) -> None:
        self._deployment = deployment
        self._scheduler = scheduler
        self._on_result = on_result
        self._frames = frames

    async def run(self) -> None:
        """Returns when every sequence has finished.

        Raises:
            UnavailableError: The stream into the first stage broke, or a frame is lost.
            MeshError: What a stage ended the stream with.
        """
        await unless(self._broken(), self._loop())

    async def _loop(self) -> None:
        await self._send()
        while not self._scheduler.is_done:
            await self._take(await self._receive())

    async def _send(self) -> None:
        while micro_batch := self._scheduler.next_micro_batch():
            self._frames.sent(micro_batch)
            await self._deployment.frames.send(frame_of(micro_batch, self._deployment.deployment_id))

    async def _receive(self) -> Frame:
        try:
            async with asyncio.timeout(FRAME_TIMEOUT_S):  # wait_for would lose a cancellation that races with a result
                return await self._deployment.results.get()
        except TimeoutError as error:
            raise UnavailableError(f"No result came back for {FRAME_TIMEOUT_S:g} seconds.") from error

    async def _take(self, result: Frame) -> None:
        micro_batch = self._scheduler.in_flight(result.frame_id)
        if micro_batch:
            self._frames.received(micro_batch, result.timings)
            advanced = self._scheduler.record(result.frame_id, values_of(result, micro_batch.num_results))
            try:
                await self._send()  # first, because stages wait
            finally:  # what came is recorded even if nothing more can be sent
                self._on_result(micro_batch, result.timings, advanced)

    async def _broken(self) -> Never:
        await self._deployment.frames.watch()
        raise AssertionError("watching a stream only ends by an error")


def frame_of(micro_batch: MicroBatch, deployment_id: str) -> Frame:
    """The frame that carries a micro-batch into the first stage; its payload is (rows) token ids, int32."""
    pieces = micro_batch.pieces
    tokens = array("i", chain.from_iterable(piece.sequence.tokens(piece.start, piece.count) for piece in pieces))
    is_greedy = all(piece.sequence.sampling.temperature == 0 for piece in pieces)
    return Frame(
        deployment_id=deployment_id,
        frame_id=micro_batch.frame_id,
        phase=micro_batch.phase,
        slots=[piece.slot for piece in pieces],
        starts=[piece.start for piece in pieces],
        counts=[piece.count for piece in pieces],
        output=micro_batch.output,
        emits=[piece.emits for piece in pieces] if micro_batch.output is FrameOutput.TOKENS else [],
        sampling=[] if is_greedy else [piece.sequence.sampling for piece in pieces],
        targets=[t for piece in pieces for t in piece.targets] if micro_batch.output is FrameOutput.SCORES else [],
        data_type=DataType.INT32,
        dimensions=(len(tokens),),
        payload=tokens.tobytes(),
    )


def values_of(result: Frame, num_expected: int) -> Sequence[float]:
    """Token ids or scores in a result frame.

    Raises:
        InternalError: There are not as many as there should be.
    """
    values = memoryview(result.payload).cast("f" if result.data_type is DataType.FLOAT32 else "i")
    if len(values) != num_expected:
        raise InternalError(
            f"The last stage returned {len(values)} values for frame {result.frame_id}, {num_expected} were expected.",
            subject=f"frame {result.frame_id}",
        )
    return values.tolist()
