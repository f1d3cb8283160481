"""The job store: batches, their requests, the journal of tokens, and the answers."""

import json
import re
import sqlite3
import uuid
from array import array
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from coordinator.database import Database
from coordinator.records import batch_of, parameters_of, request_of, result_of
from coordinator.requests import Answer, Request
from llmpq.batch import Batch, BatchOptions, BatchState, Result, StageReport
from llmpq.errors import InvalidInputError, NotFoundError, OverloadedError
from llmpq.messages import from_fields
from llmpq.plan import Plan

#: Batches on a page at most.
MAX_PAGE_SIZE = 100
#: When a client that met a full queue should try again.
RETRY_AFTER_S = 5.0

_IS_UNFINISHED = f"state NOT IN ({', '.join(repr(str(state)) for state in BatchState if state.is_final)})"
_LARGEST_INTEGER = 2**63 - 1
_PAGE_TOKEN = re.compile("[0-9]{1,18}")  # a number of a batch, far below the largest


@dataclass(frozen=True)
class UnfinishedRequest:
    """A request without an answer, and the tokens that an earlier run has journalled for it."""

    request: Request
    generated: Sequence[int]


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A token, and its place in the answer, from 0."""

    line_number: int
    place: int
    token: int


class JobStore:
    """All that survives a restart.

    What is awaited is on disk when it returns; what is posted, within the database's commit interval. Reading, awaiting
    and posting keep their order.

    Attributes:
        changes: Told whenever anything was stored.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.changes = database.changes

    @classmethod
    @asynccontextmanager
    async def opened(cls, directory: Path) -> AsyncIterator["JobStore"]:
        """Opens the store in a directory, created if missing.

        Raises:
            PreconditionError: Another coordinator uses it.
        """
        schema = files("coordinator").joinpath("schema.sql").read_text()
        async with Database.opened(directory / "jobs.sqlite", schema) as database:
            yield cls(database)

    async def add_batch(
        self,
        options: BatchOptions,
        model: str,
        lines: Mapping[int, str],
        max_queued_requests: int,
    ) -> tuple[Batch, bool]:
        """Stores a batch.

        Args:
            options: Its options. A request_id that is there already names the batch to return.
            model: What runs it.
            lines: Text by line number.
            max_queued_requests: Unanswered lines that may be in the store.

        Returns:
            The batch, and whether it was there already.

        Raises:
            InvalidInputError: More lines than the queue ever takes.
            OverloadedError: More lines than it takes now.
        """

        def add(connection: sqlite3.Connection) -> tuple[Batch, bool]:
            known = connection.execute("SELECT * FROM batches WHERE request_id = ?", (options.request_id,)).fetchone()
            if known:
                return batch_of(known), True
            _check_queue(connection, len(lines), max_queued_requests)
            batch_id = f"batch_{uuid.uuid4().hex}"
            connection.execute(
                "INSERT INTO batches"
                " (batch_id, request_id, model, options, state, status_message, requests_total, create_time)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    batch_id,
                    options.request_id or None,
                    model,
                    json.dumps(asdict(options)),
                    BatchState.QUEUED,
                    "Waiting for its turn.",
                    len(lines),
                    _now(),
                ),
            )
            rows = ((batch_id, line_number, text) for line_number, text in lines.items())
            connection.executemany("INSERT INTO lines VALUES (?, ?, ?)", rows)
            return batch_of(_row(connection, batch_id)), False

        return await self._database.run(add)

    async def batch(self, batch_id: str) -> Batch:
        """A batch as it is now.

        Raises:
            NotFoundError: There is none of that id.
        """
        return await self._database.run(lambda connection: batch_of(_row(connection, batch_id)))

    async def options(self, batch_id: str) -> BatchOptions:
        """The options that a batch was submitted with; raises as `batch`."""
        row = await self._database.run(lambda connection: _row(connection, batch_id))
        return from_fields(BatchOptions, json.loads(row["options"]))

    async def batches(self, page_size: int, page_token: str) -> tuple[list[Batch], str]:
        """A page of batches, newest first, without plan and stages, and the token of the next page.

        Raises:
            InvalidInputError: A token that this store did not make.
        """
        if page_token and not _PAGE_TOKEN.fullmatch(page_token):
            raise InvalidInputError(f"'{page_token}' is no page token of this service.", subject="page_token")
        before = int(page_token or _LARGEST_INTEGER)
        size = min(page_size or MAX_PAGE_SIZE, MAX_PAGE_SIZE)
        query = "SELECT * FROM batches WHERE number < ? ORDER BY number DESC LIMIT ?"
        rows = await self._database.run(lambda connection: connection.execute(query, (before, size + 1)).fetchall())
        page = [replace(batch_of(row), plan=None, stages=()) for row in rows[:size]]
        return page, str(rows[size - 1]["number"]) if len(rows) > size else ""

    async def next_unfinished(self) -> Batch | None:
        """The oldest batch that is not in a final state."""
        query = f"SELECT * FROM batches WHERE {_IS_UNFINISHED} ORDER BY number LIMIT 1"  # noqa: S608 our own names
        row = await self._database.run(lambda connection: connection.execute(query).fetchone())
        return batch_of(row) if row else None

    async def unanswered_lines(self, batch_id: str) -> list[tuple[int, str]]:
        """Number and text of every line without an answer, in order."""
        rows = await self._database.run(lambda connection: _unanswered(connection, "lines", batch_id))
        return [(row["line_number"], row["text"]) for row in rows]

    async def add_requests(self, batch_id: str, requests: Sequence[Request], errors: Sequence[Answer]) -> None:
        """Stores what the lines of a batch became, and that it can be planned: all of it, or after a crash nothing."""

        def add(connection: sqlite3.Connection) -> None:
            rows = ((batch_id, r.line_number, r.prompt.tobytes(), parameters_of(r)) for r in requests)
            connection.executemany("INSERT INTO requests VALUES (?, ?, ?, ?)", rows)
            _update(
                connection,
                batch_id,
                state=BatchState.PLANNING,
                prompt_tokens=sum(len(request.prompt) for request in requests),
                remaining_tokens_max=sum(request.max_tokens for request in requests),
            )
            _add_answers(connection, batch_id, errors)

        await self._database.run(add)

    async def unfinished_requests(self, batch_id: str) -> list[UnfinishedRequest]:
        """Every valid request without an answer, in the order of the lines."""

        def read(connection: sqlite3.Connection) -> list[UnfinishedRequest]:
            journal: dict[int, array[int]] = {}
            query = "SELECT line_number, token FROM journal WHERE batch_id = ? ORDER BY line_number, place"
            for line_number, token in connection.execute(query, (batch_id,)):
                journal.setdefault(line_number, array("i")).append(token)
            requests = map(request_of, _unanswered(connection, "requests", batch_id))
            return [UnfinishedRequest(request, journal.get(request.line_number, ())) for request in requests]

        return await self._database.run(read)

    async def set_state(self, batch_id: str, state: BatchState, message: str, *, plan: Plan | None = None) -> None:
        """Moves a batch on; a plan replaces the one before."""
        planned = {"plan": json.dumps(asdict(plan))} if plan else {}
        await self._database.run(
            lambda connection: _update(connection, batch_id, state=state, status_message=message, **planned),
        )

    async def set_started(self, batch_id: str) -> None:
        """Marks the time from which on tokens are generated, unless it is marked already."""
        query = "UPDATE batches SET start_time = ? WHERE batch_id = ? AND start_time IS NULL"
        await self._database.run(lambda connection: connection.execute(query, (_now(), batch_id)))

    async def end_batch(self, batch_id: str, state: BatchState, message: str, errors: Sequence[Answer] = ()) -> None:
        """Puts a batch into a final state, with an error for every line that has no answer."""

        def end(connection: sqlite3.Connection) -> None:
            _add_answers(connection, batch_id, errors)
            connection.execute("DELETE FROM journal WHERE batch_id = ?", (batch_id,))
            _update(
                connection,
                batch_id,
                state=state,
                status_message=message,
                end_time=_now(),
                remaining_tokens_max=0,
            )

        await self._database.run(end)

    async def results(self, batch_id: str, after: int, limit: int) -> list[Result]:
        """The next answers in the order of completion; their numbers start at 1."""
        query = "SELECT * FROM results WHERE batch_id = ? AND sequence > ? ORDER BY sequence LIMIT ?"
        values = (batch_id, min(after, _LARGEST_INTEGER), limit)
        rows = await self._database.run(lambda connection: connection.execute(query, values).fetchall())
        return [result_of(row) for row in rows]

    def post_tokens(self, batch_id: str, entries: Sequence[JournalEntry]) -> None:
        """Journals tokens."""

        def write(connection: sqlite3.Connection) -> None:
            rows = ((batch_id, entry.line_number, entry.place, entry.token) for entry in entries)
            connection.executemany("INSERT INTO journal VALUES (?, ?, ?, ?)", rows)
            _count(connection, batch_id, generated_tokens=len(entries), remaining_tokens_max=-len(entries))

        self._database.post(write)

    def post_answer(self, batch_id: str, answer: Answer, num_unneeded_tokens: int) -> None:
        """Finishes a request that generated so many tokens fewer than it was allowed."""

        def write(connection: sqlite3.Connection) -> None:
            _add_answers(connection, batch_id, (answer,))
            query = "DELETE FROM journal WHERE batch_id = ? AND line_number = ?"
            connection.execute(query, (batch_id, answer.line_number))
            _count(connection, batch_id, remaining_tokens_max=-num_unneeded_tokens)

        self._database.post(write)

    def post_status(self, batch_id: str, message: str) -> None:
        """Replaces the status message of a batch."""
        self._database.post(lambda connection: _update(connection, batch_id, status_message=message))

    def post_stages(self, batch_id: str, reports: Sequence[StageReport]) -> None:
        """Replaces the stage reports of a batch."""
        stages = json.dumps([asdict(report) for report in reports])
        self._database.post(lambda connection: _update(connection, batch_id, stages=stages))


def _check_queue(connection: sqlite3.Connection, num_lines: int, max_queued_requests: int) -> None:
    if num_lines > max_queued_requests:
        raise InvalidInputError(
            f"The batch has {num_lines:,} requests, but the queue takes {max_queued_requests:,}. Split it.",
            subject="lines",
        )
    query = f"SELECT TOTAL(requests_total - requests_completed - requests_failed) FROM batches WHERE {_IS_UNFINISHED}"  # noqa: S608 our own names
    num_queued = int(connection.execute(query).fetchone()[0])
    if num_queued + num_lines > max_queued_requests:
        raise OverloadedError(
            f"The queue is full: {num_queued:,} requests wait or run, and {num_lines:,} more would exceed the limit of "
            f"{max_queued_requests:,}.",
            retry_after_s=RETRY_AFTER_S,
            subject="queue",
        )


def _row(connection: sqlite3.Connection, batch_id: str) -> sqlite3.Row:
    row: sqlite3.Row | None = connection.execute("SELECT * FROM batches WHERE batch_id = ?", (batch_id,)).fetchone()
    if row is None:
        raise NotFoundError(f"There is no batch '{batch_id}'.", reason="BATCH_NOT_FOUND", subject=batch_id)
    return row


def _unanswered(connection: sqlite3.Connection, table: str, batch_id: str) -> list[sqlite3.Row]:
    answered = "SELECT line_number FROM results WHERE batch_id = ?"
    query = f"SELECT * FROM {table} WHERE batch_id = ? AND line_number NOT IN ({answered}) ORDER BY line_number"  # noqa: S608 our own names
    return connection.execute(query, (batch_id, batch_id)).fetchall()


def _update(connection: sqlite3.Connection, batch_id: str, **columns: str | int) -> None:
    """Sets columns of a batch."""
    assignments = ", ".join(f"{name} = ?" for name in columns)
    query = f"UPDATE batches SET {assignments} WHERE batch_id = ?"  # noqa: S608 our own names
    connection.execute(query, (*columns.values(), batch_id))


def _count(connection: sqlite3.Connection, batch_id: str, **columns: int) -> None:
    """Adds to columns of a batch."""
    assignments = ", ".join(f"{name} = {name} + ?" for name in columns)
    query = f"UPDATE batches SET {assignments} WHERE batch_id = ?"  # noqa: S608 our own names
    connection.execute(query, (*columns.values(), batch_id))


def _add_answers(connection: sqlite3.Connection, batch_id: str, answers: Iterable[Answer]) -> None:
    """Stores answers under the next numbers, and counts them."""
    query = "SELECT COALESCE(MAX(sequence), 0) FROM results WHERE batch_id = ?"
    (last,) = connection.execute(query, (batch_id,)).fetchone()
    rows = [
        (batch_id, sequence, answer.line_number, answer.custom_id, answer.is_error, answer.json)
        for sequence, answer in enumerate(answers, start=last + 1)
    ]
    connection.executemany("INSERT INTO results VALUES (?, ?, ?, ?, ?, ?)", rows)
    num_failed = sum(row[4] for row in rows)
    _count(connection, batch_id, requests_completed=len(rows) - num_failed, requests_failed=num_failed)


def _now() -> str:
    return datetime.now(UTC).isoformat()
