"""SQLite on a thread of its own, with group commit."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

from coordinator.changes import Changes
from llmpq.errors import InternalError, PreconditionError

T = TypeVar("T")
Write = Callable[[sqlite3.Connection], None]

#: Longest time that a posted write waits for others to be committed with it.
COMMIT_INTERVAL_S = 0.05


class Database:
    """Transactions on one SQLite file.

    `run` is a transaction of its own, on disk when it returns. `post` only queues: all that was posted within the
    commit interval becomes one transaction, so that nobody waits for the disk. Posted writes come before later `run`s.

    Attributes:
        changes: Told after every commit.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self.changes = Changes()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._posted: list[Write] = []
        self._commit: asyncio.Task[None] | None = None
        self._connection = self._thread.submit(_connect, path, schema).result()

    @classmethod
    @asynccontextmanager
    async def opened(cls, path: Path, schema: str) -> AsyncIterator["Database"]:
        """Opens the file, created if missing; on leaving, commits what was posted.

        Raises:
            PreconditionError: Another process has it open.
        """
        database = cls(path, schema)
        try:
            yield database
            await database.run(lambda _: None)
        finally:
            if database._commit:
                database._commit.cancel()
            await asyncio.wrap_future(database._thread.submit(database._connection.close))
            database._thread.shutdown()

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs a transaction and returns its result once it is on disk; an exception of `work` undoes it."""
        posted, self._posted = self._posted, []
        has_changed, result = await asyncio.get_running_loop().run_in_executor(
            self._thread,
            self._transact,
            posted,
            work,
        )
        if has_changed:
            self.changes.notify()
        return result

    def post(self, write: Write) -> None:
        """Queues a write.

        Raises:
            InternalError: An earlier one could not be written.
        """
        self._raise_failure()
        self._posted.append(write)
        if self._commit is None or self._commit.done():
            self._commit = asyncio.get_running_loop().create_task(self._commit_soon())

    async def _commit_soon(self) -> None:
        await asyncio.sleep(COMMIT_INTERVAL_S)
        await self.run(lambda _: None)

    def _raise_failure(self) -> None:
        if self._commit and self._commit.done() and not self._commit.cancelled() and self._commit.exception():
            raise InternalError("The job store cannot be written; see the log.") from self._commit.exception()

    def _transact(self, posted: list[Write], work: Callable[[sqlite3.Connection], T]) -> tuple[bool, T]:
        changes_before = self._connection.total_changes
        if posted:
            with _transaction(self._connection):
                for write in posted:
                    write(self._connection)
        with _transaction(self._connection):
            result = work(self._connection)
        return self._connection.total_changes > changes_before, result


def _connect(path: Path, schema: str) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    connection.row_factory = sqlite3.Row
    try:
        # Exclusive: two coordinators on one store would run every batch twice.
        connection.executescript(
            "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;",
        )
        connection.executescript(f"BEGIN IMMEDIATE; {schema} COMMIT;")
    except sqlite3.OperationalError as error:
        connection.close()
        message = f"Cannot open the job store {path}: {error}. Does another coordinator use this directory?"
        raise PreconditionError(message, subject=str(path)) from error
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
