"""What became of the frames of the last batches, kept in memory for `GetTrace`."""

import time
from collections import deque
from collections.abc import Sequence
from itertools import islice

from llmpq.device import Phase
from llmpq.errors import NotFoundError
from llmpq.frames import StageTiming
from llmpq.schedule.scheduler import MicroBatch
from llmpq.trace import FrameTrace, transits_ns

#: Batches that are kept, and the latest frames of each.
MAX_BATCHES, MAX_FRAMES = 4, 65_536
#: Frames that are looked at to find a typical one.
_MAX_TYPICAL = 1000


class FrameLog:
    """The frames of one batch on their way; those that never come back are left out."""

    def __init__(self) -> None:
        self._sent_unix_ns: dict[int, int] = {}
        self.frames: deque[FrameTrace] = deque(maxlen=MAX_FRAMES)

    @property
    def unhindered_decode(self) -> FrameTrace | None:
        """Of the latest decode frames one that was on its way for less time than three of four; None if there was none.

        A stage that computes is late to see what arrives. That delays nothing while it has another frame to compute,
        so the slower frames say little about what hinders a pipeline.
        """
        latest = islice(reversed(self.frames), _MAX_TYPICAL)
        ranked = sorted((frame for frame in latest if frame.phase is Phase.DECODE), key=_transit_ns)
        return ranked[len(ranked) // 4] if ranked else None

    def sent(self, micro_batch: MicroBatch) -> None:
        """Takes that a micro-batch is sent now."""
        self._sent_unix_ns[micro_batch.frame_id] = time.time_ns()

    def received(self, micro_batch: MicroBatch, timings: Sequence[StageTiming]) -> None:
        """Takes that its result came back now."""
        self.frames.append(
            FrameTrace(
                frame_id=micro_batch.frame_id,
                phase=micro_batch.phase,
                num_sequences=len(micro_batch.pieces),
                num_rows=sum(piece.count for piece in micro_batch.pieces),
                num_results=micro_batch.num_results,
                sent_unix_ns=self._sent_unix_ns.pop(micro_batch.frame_id),
                received_unix_ns=time.time_ns(),
                timings=tuple(timings),
            )
        )


class Traces:
    """The frame logs of the last batches."""

    def __init__(self) -> None:
        self._logs: dict[str, FrameLog] = {}

    def start(self, batch_id: str) -> FrameLog:
        """A new log for a batch that begins to run, perhaps again; the oldest one is dropped if there are many."""
        self._logs.pop(batch_id, None)
        self._logs[batch_id] = FrameLog()
        if len(self._logs) > MAX_BATCHES:
            del self._logs[next(iter(self._logs))]
        return self._logs[batch_id]

    def frames(self, batch_id: str) -> tuple[FrameTrace, ...]:
        """The frames of a batch, in the order in which they came back.

        Raises:
            NotFoundError: They are not kept.
        """
        if batch_id not in self._logs:
            message = (
                f"The frames of batch '{batch_id}' are not kept: only those of the last {MAX_BATCHES} that ran are."
            )
            raise NotFoundError(message, subject=batch_id)
        return tuple(self._logs[batch_id].frames)


def _transit_ns(frame: FrameTrace) -> int:
    return sum(transits_ns(frame))
