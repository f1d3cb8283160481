"""Runs the batches of the job store, the oldest first, one at a time."""

import asyncio
import sqlite3
from collections.abc import Sequence
from typing import Never

import structlog

from coordinator.batch_run import BatchRun, Mesh
from coordinator.openai_answers import error_answer
from coordinator.openai_requests import LineError, custom_id_of
from coordinator.requests import Answer
from coordinator.store import JobStore
from llmpq.batch import Batch, BatchState
from llmpq.errors import MeshError

log = structlog.get_logger(__name__)

_UNSTORABLE = LineError("batch_failed", "The reason could not be stored; the coordinator's log has it.")


class Runner:
    """The queue. It keeps no state of its own: what is unfinished in the store is what runs.

    Args:
        store: The job store.
        mesh: What batches run on.
    """

    def __init__(self, store: JobStore, mesh: Mesh) -> None:
        self._store = store
        self._mesh = mesh
        self._choosing = asyncio.Lock()
        self._running: tuple[str, asyncio.Task[None]] | None = None

    async def run(self) -> Never:
        """Runs batches for as long as the process lives; ends only if the job store fails."""
        try:
            while True:
                version = self._store.changes.version
                task = await self._start_next()
                if task is None:
                    await self._store.changes.after(version)
                else:
                    await asyncio.wait({task})
                    _raise_failure(task)
        finally:
            await self._stop()

    async def cancel(self, batch_id: str) -> Batch:
        """Ends a batch, whatever it is doing; one in a final state stays as it is.

        Raises:
            NotFoundError: There is no such batch.
        """
        async with self._choosing:
            if self._running and self._running[0] == batch_id:
                await self._stop()
            if not (await self._store.batch(batch_id)).state.is_final:
                error = LineError("batch_cancelled", "The batch was cancelled before this line was answered.")
                await self._end(batch_id, BatchState.CANCELLED, "Cancelled.", error)
            return await self._store.batch(batch_id)

    async def _start_next(self) -> "asyncio.Task[None] | None":
        async with self._choosing:
            batch = await self._store.next_unfinished()
            if batch is None:
                return None
            task = asyncio.create_task(self._run_to_end(batch), name=batch.batch_id)
            self._running = batch.batch_id, task
            return task

    async def _run_to_end(self, batch: Batch) -> None:
        log.info("batch.started", batch=batch.batch_id, state=batch.state, requests=batch.requests_total)
        try:
            options = await self._store.options(batch.batch_id)
            await BatchRun(batch, options, self._store, self._mesh).run()
            await self._store.end_batch(batch.batch_id, BatchState.COMPLETED, "Every line is answered.")
        except MeshError as error:
            log.warning("batch.failed", batch=batch.batch_id, reason=error.reason, error=error.message)
            await self._fail(batch.batch_id, error.message)
        except Exception as error:  # a bug that one batch meets must not end the others
            log.exception("batch.failed", batch=batch.batch_id)
            await self._fail(batch.batch_id, f"Internal error: {type(error).__name__}. The log has the details.")
        log.info("batch.ended", batch=batch.batch_id)

    async def _fail(self, batch_id: str, message: str) -> None:
        error = LineError("batch_failed", f"The batch failed before this line was answered: {message}")
        await self._end(batch_id, BatchState.FAILED, message, error)

    async def _end(self, batch_id: str, state: BatchState, message: str, error: LineError) -> None:
        """Puts a batch into a final state; lines without an answer get `error`.

        Raises:
            sqlite3.Error: The job store is broken.
        """
        lines = await self._store.unanswered_lines(batch_id)
        try:
            answers = await asyncio.to_thread(_error_answers, lines, error)
            await self._store.end_batch(batch_id, state, message, answers)
        except sqlite3.Error:
            raise
        except Exception:  # a batch whose own text cannot be stored must end all the same, or no other ever runs
            log.exception("batch.ended_without_its_text", batch=batch_id)
            anonymous = [error_answer(line_number, "", _UNSTORABLE) for line_number, _ in lines]
            await self._store.end_batch(batch_id, state, _UNSTORABLE.message, anonymous)

    async def _stop(self) -> None:
        if self._running:
            _, task = self._running
            task.cancel()
            await asyncio.wait({task})


def _raise_failure(task: "asyncio.Task[None]") -> None:
    """Raises what a task failed with; being cancelled is no failure."""
    if not task.cancelled():
        task.result()


def _error_answers(lines: Sequence[tuple[int, str]], error: LineError) -> list[Answer]:
    return [error_answer(line_number, custom_id_of(text), error) for line_number, text in lines]
