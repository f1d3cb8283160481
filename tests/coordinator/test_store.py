"""The job store, with and without a crash."""

import asyncio
import sqlite3
from array import array
from pathlib import Path

import pytest

from coordinator.database import Database
from coordinator.openai_answers import error_answer
from coordinator.openai_requests import LineError
from coordinator.requests import Answer, Endpoint, Request
from coordinator.store import JobStore, JournalEntry
from llmpq.batch import BatchOptions, BatchState
from llmpq.errors import InternalError, InvalidInputError, NotFoundError, OverloadedError, PreconditionError
from llmpq.frames import Sampling
from llmpq.plan import PlanOptions

OPTIONS = BatchOptions(model="m", plan_options=PlanOptions(quality_budget=0.5), metadata={"who": "me"})
REQUEST = Request(
    line_number=2,
    custom_id="two",
    endpoint=Endpoint.COMPLETIONS,
    prompt=array("i", [1, 2, 70_000]),
    max_tokens=5,
    sampling=Sampling(1.0, 0.9, 3, 2**64 - 1),
    stop_strings=("x",),
    stop_ids=(7,),
    ignores_eos=True,
)


async def _stored(store: JobStore) -> str:
    """A batch whose line 1 is wrong and whose line 2 is REQUEST."""
    batch, _ = await store.add_batch(OPTIONS, "m", {1: "one", 2: "two"}, 10)
    error = error_answer(1, "one", LineError("invalid_value", "wrong"))
    await store.add_requests(batch.batch_id, [REQUEST], [error])
    return batch.batch_id


async def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    """Requests, options and journal come back as they were, in the order of generation."""
    async with JobStore.opened(tmp_path) as store:
        batch_id = await _stored(store)
        store.post_tokens(batch_id, [JournalEntry(2, 0, 11)])
        store.post_tokens(batch_id, [JournalEntry(2, 1, 12)])

    async with JobStore.opened(tmp_path) as store:
        (unfinished,) = await store.unfinished_requests(batch_id)
        batch = await store.batch(batch_id)
        assert await store.options(batch_id) == OPTIONS

    assert unfinished.request == REQUEST
    assert list(unfinished.generated) == [11, 12]
    assert batch.state is BatchState.PLANNING
    assert (batch.requests_total, batch.requests_completed, batch.requests_failed) == (2, 0, 1)
    assert (batch.prompt_tokens, batch.generated_tokens, batch.remaining_tokens_max) == (3, 2, 3)
    assert batch.metadata == {"who": "me"}


async def test_finishing_a_request_is_one_transaction(tmp_path: Path) -> None:
    """With the answer go the journal and what was left of max_tokens; the answer is numbered after those before."""
    async with JobStore.opened(tmp_path) as store:
        batch_id = await _stored(store)
        store.post_tokens(batch_id, [JournalEntry(2, 0, 11)])
        store.post_answer(batch_id, Answer(2, "two", is_error=False, json="{}"), num_unneeded_tokens=4)

        results = await store.results(batch_id, after=0, limit=10)
        batch = await store.batch(batch_id)

        assert [(result.sequence, result.custom_id, result.is_error) for result in results] == [
            (1, "one", True),
            (2, "two", False),
        ]
        assert await store.results(batch_id, after=1, limit=10) == results[1:]
        assert await store.unfinished_requests(batch_id) == []
        assert (batch.requests_completed, batch.remaining_tokens_max) == (1, 0)


async def test_a_line_is_answered_once(tmp_path: Path) -> None:
    """A second answer to a line is a bug that the store refuses; nothing of its transaction stays."""
    async with JobStore.opened(tmp_path) as store:
        batch_id = await _stored(store)
        again = Answer(1, "one", is_error=False, json="{}")

        with pytest.raises(sqlite3.IntegrityError):
            await store.end_batch(batch_id, BatchState.FAILED, "why", [again])

        assert (await store.batch(batch_id)).state is BatchState.PLANNING


async def test_a_request_id_makes_submission_idempotent(tmp_path: Path) -> None:
    """The second batch of a request_id is the first one, even if the queue is full by then."""
    async with JobStore.opened(tmp_path) as store:
        options = BatchOptions(model="m", request_id="r")
        first, existed = await store.add_batch(options, "m", {1: "x"}, 1)
        again, exists = await store.add_batch(options, "m", {1: "y"}, 1)

    assert (existed, exists) == (False, True)
    assert again.batch_id == first.batch_id


async def test_a_full_queue_takes_nothing(tmp_path: Path) -> None:
    """What would exceed the limit is refused with a time to try again; what always would, for good."""
    async with JobStore.opened(tmp_path) as store:
        first, _ = await store.add_batch(OPTIONS, "m", {1: "x", 2: "y"}, 3)
        with pytest.raises(OverloadedError) as overloaded:
            await store.add_batch(OPTIONS, "m", {1: "x", 2: "y"}, 3)
        with pytest.raises(InvalidInputError, match="Split"):
            await store.add_batch(OPTIONS, "m", dict.fromkeys(range(4), "x"), 3)
        assert overloaded.value.retry_after_s > 0
        await store.end_batch(first.batch_id, BatchState.CANCELLED, "")

        assert await store.add_batch(OPTIONS, "m", {1: "x", 2: "y"}, 3)


async def test_batches_come_in_pages_newest_first(tmp_path: Path) -> None:
    """Pages follow each other without gaps, also if batches are added meanwhile; a made-up token is refused."""
    async with JobStore.opened(tmp_path) as store:
        added = [(await store.add_batch(OPTIONS, "m", {1: "x"}, 99))[0].batch_id for _ in range(5)]
        first, token = await store.batches(2, "")
        await store.add_batch(OPTIONS, "m", {1: "x"}, 99)
        second, token = await store.batches(2, token)
        third, end = await store.batches(2, token)

        with pytest.raises(InvalidInputError, match="page token"):
            await store.batches(2, "٣")
        with pytest.raises(InvalidInputError, match="page token"):
            await store.batches(2, "not-mine")

    assert [batch.batch_id for batch in (*first, *second, *third)] == added[::-1]
    assert not end


async def test_unknown_batches_are_named(tmp_path: Path) -> None:
    """An id that was never given is NOT_FOUND."""
    async with JobStore.opened(tmp_path) as store:
        with pytest.raises(NotFoundError, match="batch_x"):
            await store.batch("batch_x")


async def test_one_coordinator_uses_a_store(tmp_path: Path) -> None:
    """A second process on the same directory is refused instead of running every batch twice."""
    async with JobStore.opened(tmp_path):
        with pytest.raises(PreconditionError, match="another coordinator"):
            async with JobStore.opened(tmp_path):
                pass


async def test_posted_writes_are_committed_soon_and_together(tmp_path: Path) -> None:
    """Nobody has to ask for a posted write to be committed, and many become one commit."""
    async with Database.opened(tmp_path / "db", "CREATE TABLE IF NOT EXISTS t (x INTEGER);") as database:
        version = database.changes.version
        for number in range(50):
            database.post(lambda connection, number=number: connection.execute("INSERT INTO t VALUES (?)", (number,)))  # type: ignore[misc]
        await asyncio.wait_for(database.changes.after(version), 5)

        assert database.changes.version == version + 1
        rows = await database.run(lambda connection: connection.execute("SELECT COUNT(*) FROM t").fetchone()[0])
        assert rows == 50


async def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """After a posted write has failed, the next one raises: nobody goes on computing what cannot be kept."""
    async with Database.opened(tmp_path / "db", "CREATE TABLE IF NOT EXISTS t (x INTEGER);") as database:
        database.post(lambda connection: connection.execute("INSERT INTO nothing VALUES (1)"))
        await asyncio.sleep(0.2)

        with pytest.raises(InternalError, match="cannot be written"):
            database.post(lambda _: None)
