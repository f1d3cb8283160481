"""Stages and coordinators that die in mid-batch."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from bench import Bench, watched
from fake_planner import FakePlanner
from fake_stage import FakeStage, answer
from mesh import Service, answer_of, completion

from coordinator.tokenizing import ModelTokenizer
from llmpq import Batch, BatchState, Client, PlanOptions, Result

LINES = [completion(f"r{n}", f"prompt number {n}.", 40 + n) for n in range(12)]
FRAME_DELAY_S = 0.004


def _texts(results: list[Result]) -> dict[str, str]:
    return {result.custom_id: answer_of(result)["choices"][0]["text"] for result in results}


@pytest.fixture
def expected(opt_bytes: str) -> dict[str, str]:
    """The texts of an undisturbed run."""
    tokenizer = ModelTokenizer.load(opt_bytes)
    requests = [(line["custom_id"], line["body"]["prompt"], line["body"]["max_tokens"]) for line in LINES]
    return {
        custom_id: tokenizer.decode(answer(tokenizer.encode(prompt), max_tokens))
        for custom_id, prompt, max_tokens in requests
    }


def _has_finished_some(batch: Batch) -> bool:
    return batch.requests_completed >= 3


async def _finish(bench: Bench, batch_id: str) -> tuple[Batch, dict[str, str]]:
    results = [result async for result in bench.client.results(batch_id)]
    return await bench.client.get(batch_id), _texts(results)


@pytest.mark.parametrize("lost", ["a", "b", "c"])
async def test_a_batch_goes_on_without_a_lost_stage(bench: Bench, expected: dict[str, str], lost: str) -> None:
    """When a stage dies, first, middle or last, the others are planned again and the answers are the same."""
    async with bench.running():
        for name in ("a", "b", "c"):
            await bench.add_stage(name, frame_delay_s=FRAME_DELAY_S)
        batch_id = (await bench.client.submit(LINES, model=bench.model)).batch_id
        running = await watched(bench.client, batch_id, _has_finished_some)
        await bench.stages[lost].__aexit__(None, None, None)
        batch, texts = await _finish(bench, batch_id)

    assert len(running.plan.stages) == 3
    assert [stage.device_id for stage in batch.plan.stages] == sorted({"a", "b", "c"} - {lost})
    assert batch.state is BatchState.COMPLETED
    assert texts == expected
    assert batch.generated_tokens == sum(line["body"]["max_tokens"] for line in LINES)


async def test_nothing_is_generated_twice_after_an_interruption(bench: Bench) -> None:
    """Finished requests are not begun again, and journalled tokens are prefilled rather than generated."""
    async with bench.running():
        stage = await bench.add_stage("a", frame_delay_s=FRAME_DELAY_S)
        batch_id = (await bench.client.submit(LINES, model=bench.model)).batch_id
        await watched(bench.client, batch_id, _has_finished_some)
        stage.leave()
        before = await watched(bench.client, batch_id, lambda batch: "no devices" in batch.status_message)
        stage.register()
        batch, _ = await _finish(bench, batch_id)

    resumed = bench.planner.problems[-1].workload
    assert sum(bucket.count for bucket in resumed) == len(LINES) - before.requests_completed
    assert sum(bucket.output_tokens * bucket.count for bucket in resumed) == before.remaining_tokens_max
    assert before.generated_tokens + before.remaining_tokens_max == batch.generated_tokens
    of_second = [frame for frame in stage.frames if frame.deployment_id == stage.loads[-1].deployment_id]
    assert len(stage.loads) == 2
    assert sum(sum(frame.emits) for frame in of_second) == before.remaining_tokens_max


async def test_a_stage_that_comes_back_is_used_again(bench: Bench, expected: dict[str, str]) -> None:
    """A stage that breaks its stream and registers again within the grace is part of the next plan."""
    async with bench.running():
        for name in ("a", "b"):
            await bench.add_stage(name, frame_delay_s=FRAME_DELAY_S)
        batch_id = (await bench.client.submit(LINES, model=bench.model)).batch_id
        await watched(bench.client, batch_id, _has_finished_some)
        bench.stages["a"].leave()
        await asyncio.sleep(0.1)
        bench.stages["a"].register()
        batch, texts = await _finish(bench, batch_id)

    assert texts == expected
    assert [stage.device_id for stage in batch.plan.stages] == ["a", "b"]
    assert len({load.deployment_id for load in bench.stages["b"].loads}) == 2


async def test_a_silent_stage_interrupts_the_batch(bench: Bench, expected: dict[str, str]) -> None:
    """A stage that stops sending heartbeats is lost, even if its process still answers."""
    async with bench.running():
        for name in ("a", "b"):
            await bench.add_stage(name, frame_delay_s=FRAME_DELAY_S)
        batch_id = (await bench.client.submit(LINES, model=bench.model)).batch_id
        await watched(bench.client, batch_id, lambda batch: batch.generated_tokens > 0)
        bench.stages["b"].is_silent = True
        bench.stages["b"].frame_delay_s = 60  # it has stopped computing, too
        batch, texts = await _finish(bench, batch_id)

    assert texts == expected
    assert [stage.device_id for stage in batch.plan.stages] == ["a"]


async def test_without_a_feasible_plan_an_interrupted_batch_waits(bench: Bench, expected: dict[str, str]) -> None:
    """A batch that has run before waits for devices for as long as it takes, and says what it waits for."""
    bench.planner.min_devices = 2
    async with bench.running(lease_ttl_s=0.6):
        for name in ("a", "b"):
            await bench.add_stage(name, frame_delay_s=FRAME_DELAY_S)
        batch_id = (await bench.client.submit(LINES, model=bench.model)).batch_id
        await watched(bench.client, batch_id, _has_finished_some)
        bench.stages["a"].leave()
        waiting = await watched(bench.client, batch_id, lambda batch: "Waiting for other" in batch.status_message)
        await asyncio.sleep(1.0)  # longer than the grace that a new batch would have
        assert (await bench.client.get(batch_id)).state is BatchState.PLANNING
        bench.stages["a"].register()
        batch, texts = await _finish(bench, batch_id)

    assert "No plan fits" in waiting.status_message
    assert batch.state is BatchState.COMPLETED
    assert texts == expected


async def test_a_stopped_coordinator_goes_on_where_it_was(bench: Bench, expected: dict[str, str]) -> None:
    """A coordinator that is stopped in an orderly way leaves its batches unfinished, and the next one finishes them."""
    async with bench.running():
        await bench.add_stage("a", frame_delay_s=FRAME_DELAY_S)
        batch_id = (await bench.client.submit(LINES, model=bench.model)).batch_id
        before = await watched(bench.client, batch_id, _has_finished_some)
    async with bench.running():
        await bench.add_stage("a")
        batch, texts = await _finish(bench, batch_id)

    assert before.state is BatchState.RUNNING
    assert batch.state is BatchState.COMPLETED
    assert texts == expected


@asynccontextmanager
async def _process(directory: Path, planner: FakePlanner) -> AsyncIterator[Service]:
    """A coordinator in a process of its own."""
    flags = ("--planner", planner.address, "--state", str(directory / "state"), "--lease-ttl", "2")
    service = Service("coordinator", *flags, log=directory / "coordinator.log")
    try:
        await asyncio.to_thread(service.wait_until_listening)
        yield service
    finally:
        if service.process.poll() is None:
            await asyncio.to_thread(service.stop)


async def test_a_killed_coordinator_computes_nothing_finished_again(
    tmp_path: Path, opt_bytes: str, expected: dict[str, str]
) -> None:
    """Killed in mid-batch and started again: each answer once and undisturbed; what was delivered is not run again."""
    options = PlanOptions(decode_micro_batch=2, num_lanes=2)
    async with FakePlanner() as planner, _process(tmp_path, planner) as service:
        delay = {"frame_delay_s": FRAME_DELAY_S}
        async with (
            FakeStage("a", service.address, **delay) as first,
            FakeStage("b", service.address, **delay),
            Client(service.address) as client,
        ):
            batch_id = (await client.submit(LINES, model=opt_bytes, plan_options=options)).batch_id
            got = []
            async for result in client.results(batch_id):
                got.append(result)
                if len(got) == 4:
                    await asyncio.to_thread(service.kill)
                    num_frames = len(first.frames)
                    service.start()
                    await asyncio.to_thread(service.wait_until_listening)
            batch = await client.get(batch_id)
        assert await asyncio.to_thread(service.stop) == 0

    assert batch.state is BatchState.COMPLETED
    assert _texts(got) == expected
    assert [result.sequence for result in got] == list(range(1, len(LINES) + 1))
    assert batch.generated_tokens == sum(line["body"]["max_tokens"] for line in LINES)
    tokenizer = ModelTokenizer.load(opt_bytes)
    again = first.frames[num_frames:]
    for result in got[:4]:
        prompt = tokenizer.encode(LINES[result.line_number - 1]["body"]["prompt"])
        assert first.starts_of(prompt) == 1
        assert first.starts_of(prompt, among=again) == 0


def test_flags_that_make_no_sense_end_the_process(tmp_path: Path) -> None:
    """A coordinator that nobody could reach says what to pass instead of starting."""
    done = subprocess.run(
        [sys.executable, "-m", "coordinator", "--listen", "0.0.0.0:0", "--planner", "x:1", "--state", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert "--advertise" in done.stderr
