"""The Python client against a coordinator behind real gRPC."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_coordinator import FakeCoordinator

import llmpq.client
from llmpq import BatchState, Client, LengthBucket, PlanOptions, SyncClient
from llmpq.errors import InvalidInputError, NotFoundError, OverloadedError, UnavailableError


@pytest.fixture(autouse=True)
def _rejoin_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmpq.client, "REJOIN_DELAY_S", 0.01)


def requests(count: int) -> Iterator[dict[str, Any]]:
    """Lines of an input file, as objects."""
    for number in range(1, count + 1):
        yield {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi"}}


async def test_a_batch_comes_back_with_its_plan_and_stages_as_plain_dataclasses(coordinator: FakeCoordinator) -> None:
    """Submitting returns the stored batch as a domain object: states, times, plan and stages."""
    async with Client(coordinator.address) as client:
        batch = await client.submit(requests(3), model="models/fake", metadata={"who": "me"})
    assert batch.state is BatchState.COMPLETED
    assert batch.requests_total == 3
    assert batch.running_s == 2.0
    assert batch.metadata == {"who": "me"}
    assert batch.plan is not None
    assert batch.plan.with_hash().hash == batch.plan.hash
    assert [stage.device_id for stage in batch.stages] == ["fast", "slow"]
    assert batch.stages[0].memory == batch.plan.stages[0].memory


async def test_options_travel_with_a_submission(coordinator: FakeCoordinator) -> None:
    """Plan options, defaults and flags reach the coordinator as they were given; unset ones stay unset."""
    options = PlanOptions(quality_budget=0.5, allowed_schemes=("w8",), group_size=0)
    async with Client(coordinator.address) as client:
        await client.submit(requests(1), plan_options=options, default_max_tokens=9, ignore_stop=True)
    sent = coordinator.submissions[0]
    assert sent.plan_options.WhichOneof("quality") == "quality_budget"
    assert sent.plan_options.HasField("group_size")
    assert list(sent.plan_options.allowed_schemes) == ["w8"]
    assert (sent.default_max_tokens, sent.ignore_stop) == (9, True)


async def test_every_submission_has_its_own_request_id(coordinator: FakeCoordinator) -> None:
    """A retry by the channel cannot run a batch twice, and two submissions are two batches."""
    async with Client(coordinator.address) as client:
        for _ in range(2):
            await client.submit(requests(1))
        await client.submit(requests(1), request_id="mine")
    first, second, third = (options.request_id for options in coordinator.submissions)
    assert first
    assert second
    assert first != second
    assert third == "mine"


async def test_a_file_is_sent_line_by_line_with_its_line_numbers(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    """Blank lines count, a malformed line is answered as an error that names its number; a byte-order mark is none."""
    path = tmp_path / "in.jsonl"
    good = json.dumps(next(requests(1)))
    path.write_bytes(f"{good}\r\n\nnot json\n".encode("utf-8-sig"))
    async with Client(coordinator.address) as client:
        batch = await client.submit(path)
        results = [result async for result in client.results(batch.batch_id)]
    assert [(result.line_number, result.is_error) for result in results] == [(1, False), (3, True)]


async def test_a_large_file_is_cut_into_messages_below_the_limit(coordinator: FakeCoordinator) -> None:
    """A batch of many times the largest message arrives whole and in order."""
    lines = [{**request, "body": {"prompt": "x" * 200_000}} for request in requests(40)]
    async with Client(coordinator.address) as client:
        batch = await client.submit(lines)
        results = [result async for result in client.results(batch.batch_id)]
    assert [result.custom_id for result in results] == [f"r{number}" for number in range(1, 41)]


async def test_a_line_that_cannot_be_sent_is_refused_by_its_number(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    """A line over the message limit, or one that is not UTF-8, is named and nothing is submitted."""
    async with Client(coordinator.address) as client:
        with pytest.raises(InvalidInputError, match="Line 2 has"):
            await client.submit(["{}", "x" * 5_000_000])
        path = tmp_path / "in.jsonl"
        path.write_bytes(b"{}\n\xff\n")
        with pytest.raises(InvalidInputError, match="line 2: not UTF-8"):
            await client.submit(path)
    assert coordinator.batches == {}


async def test_results_are_exactly_once_over_broken_streams(coordinator: FakeCoordinator) -> None:
    """However often the stream breaks, each result arrives once and in order."""
    coordinator.drop_after = 3
    async with Client(coordinator.address) as client:
        batch = await client.submit(requests(20))
        sequences = [result.sequence async for result in client.results(batch.batch_id)]
    assert sequences == list(range(1, 21))
    assert coordinator.breaks == 6


async def test_results_start_after_the_last_one_a_client_has(coordinator: FakeCoordinator) -> None:
    """`after` skips what the caller has stored already."""
    async with Client(coordinator.address) as client:
        batch = await client.submit(requests(5))
        sequences = [result.sequence async for result in client.results(batch.batch_id, after=3, follow=False)]
    assert sequences == [4, 5]


async def test_watching_goes_on_after_a_broken_stream(coordinator: FakeCoordinator) -> None:
    """A watch that breaks is joined again and ends with the final state."""
    coordinator.drop_after = 1
    async with Client(coordinator.address) as client:
        batch = await client.submit(requests(1))
        states = [seen.state async for seen in client.watch(batch.batch_id)]
    assert coordinator.breaks == 1
    assert states[-1] is BatchState.COMPLETED


async def test_a_stream_gives_up_when_the_coordinator_stays_away() -> None:
    """After `patience_s` without a word the caller gets UnavailableError."""
    async with Client("127.0.0.1:1", patience_s=0.1) as client:
        with pytest.raises(UnavailableError):
            _ = [batch async for batch in client.watch("batch-1")]


async def test_the_errors_of_the_contract_arrive_typed(coordinator: FakeCoordinator) -> None:
    """NOT_FOUND, INVALID_ARGUMENT and RESOURCE_EXHAUSTED are errors of `llmpq.errors`, with what they carry."""
    async with Client(coordinator.address) as client:
        with pytest.raises(NotFoundError, match="batch-9") as missing:
            await client.get("batch-9")
        assert missing.value.subject == "batch-9"
        with pytest.raises(NotFoundError):
            _ = [result async for result in client.results("batch-9")]
        with pytest.raises(InvalidInputError, match="no lines"):
            await client.submit([])
        coordinator.is_full = True
        with pytest.raises(OverloadedError) as full:
            await client.submit(requests(2000))
        assert full.value.retry_after_s == 2.5


async def test_listing_follows_the_pages(coordinator: FakeCoordinator) -> None:
    """All batches are listed, newest first, whatever the page size."""
    async with Client(coordinator.address) as client:
        for _ in range(5):
            await client.submit(requests(1))
        listed = [batch.batch_id async for batch in client.list()]
    assert listed == [f"batch-{number}" for number in (5, 4, 3, 2, 1)]


async def test_cancelling_returns_the_batch_afterwards(coordinator: FakeCoordinator) -> None:
    """A cancelled batch says so."""
    async with Client(coordinator.address) as client:
        batch = await client.submit(requests(1))
        assert (await client.cancel(batch.batch_id)).state is BatchState.CANCELLED


async def test_the_cluster_and_a_previewed_plan_are_plain_dataclasses(coordinator: FakeCoordinator) -> None:
    """Members with their devices, and one entry a strategy: a plan or the reason why there is none."""
    said: list[str] = []
    async with Client(coordinator.address) as client:
        cluster = await client.cluster()
        plans = await client.preview_plan(
            "models/fake",
            [LengthBucket(128, 64, 32)],
            strategies=("llm-pq", "uniform"),
            on_status=said.append,
        )
    assert cluster.stages[0].description.cpu_class == "avx2"
    assert plans[0].plan is not None
    assert plans[1].plan is None
    assert plans[1].error == "No precision fits."
    assert said == ["Profiling fast"]


def test_the_synchronous_client_does_the_same_without_a_loop(background_coordinator: FakeCoordinator) -> None:
    """Every method of `Client` has a blocking twin, iterators included."""
    with SyncClient(background_coordinator.address) as client:
        batch = client.submit(requests(4))
        assert [result.sequence for result in client.results(batch.batch_id)] == [1, 2, 3, 4]
        assert [seen.state for seen in client.watch(batch.batch_id)][-1] is BatchState.COMPLETED
        assert client.get(batch.batch_id) == batch
        assert [listed.batch_id for listed in client.list()] == ["batch-1"]
        assert client.cluster().stages[0].device_id == "fast"
        assert client.preview_plan("m", [LengthBucket(1, 1, 1)])[0].plan is not None
        assert client.cancel(batch.batch_id).state is BatchState.CANCELLED
        with pytest.raises(NotFoundError):
            client.get("batch-9")


def test_both_clients_have_the_same_methods() -> None:
    """The synchronous client lacks nothing."""
    public = {name for name in vars(Client) if not name.startswith("_")}
    assert public == {name for name in vars(SyncClient) if not name.startswith("_")}
