"""The life of a batch over real gRPC, between a fake planner and fake stages."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from bench import Bench, watched
from fake_stage import answer, score, too_large
from mesh import answer_of, completion

from coordinator.tokenizing import ModelTokenizer
from llmpq import BatchState, PlanOptions
from llmpq.device import Phase
from llmpq.errors import InvalidInputError, NotFoundError, OverloadedError
from llmpq.rpc import open_channel, rpc_errors
from llmpq.v1 import coordinator_service_pb2 as pb
from llmpq.v1 import plan_pb2
from llmpq.v1.coordinator_service_pb2_grpc import CoordinatorServiceStub

RAGGED = [completion(f"r{n}", "prompt " * (n % 9 + 1), 1 + n * 5 % 23) for n in range(20)]
LONG = [completion(f"long{n}", f"prompt {n}", 200) for n in range(4)]


def _expected(tokenizer: ModelTokenizer, line: dict[str, Any], seed: int = 0) -> str:
    """The text that a line must come to."""
    tokens = answer(tokenizer.encode(line["body"]["prompt"]), line["body"]["max_tokens"], seed)
    return tokenizer.decode(tokens)


@pytest.fixture
def tokenizer(opt_bytes: str) -> ModelTokenizer:
    """The tokenizer of the bench's model."""
    return ModelTokenizer.load(opt_bytes)


@pytest.mark.parametrize("num_stages", [1, 3])
async def test_every_line_is_answered(bench: Bench, tokenizer: ModelTokenizer, num_stages: int) -> None:
    """A batch goes from its lines to its answers, each what a lone request would have come to, and counts add up."""
    async with bench.running():
        for number in range(num_stages):
            await bench.add_stage(f"device{number}")
        batch, results = await bench.run(RAGGED, metadata={"who": "me"})

    assert batch.state is BatchState.COMPLETED
    assert {result.custom_id: answer_of(result)["choices"][0]["text"] for result in results} == {
        line["custom_id"]: _expected(tokenizer, line) for line in RAGGED
    }
    assert [result.sequence for result in results] == list(range(1, 21))
    assert {result.custom_id: result.line_number for result in results}["r7"] == 8
    assert (batch.requests_total, batch.requests_completed, batch.requests_failed) == (20, 20, 0)
    assert batch.generated_tokens == sum(line["body"]["max_tokens"] for line in RAGGED)
    assert batch.prompt_tokens == sum(len(line["body"]["prompt"]) for line in RAGGED)
    assert batch.remaining_tokens_max == 0
    assert batch.metadata == {"who": "me"}
    assert batch.create_time < batch.start_time < batch.end_time


async def test_reports_hold_predicted_beside_measured(bench: Bench) -> None:
    """At the end each stage of the plan has its load, its memory, both predictions and both medians."""
    async with bench.running():
        for name in ("a", "b"):
            await bench.add_stage(name)
        batch, _ = await bench.run(RAGGED)

    assert [stage.device_id for stage in batch.plan.stages] == ["a", "b"]
    for stage in batch.stages:
        assert (stage.layers_done, stage.layers_total) == (4, 4)
        assert stage.memory.layer_bytes == 4000
        assert (stage.predicted_prefill_ms, stage.predicted_decode_ms) == (5, 3)
        assert (stage.measured_prefill_ms, stage.measured_decode_ms) == (2, 2)
        assert 0 < stage.busy_ratio <= 1


async def test_frames_respect_the_plan(bench: Bench) -> None:
    """Micro-batches have at most eta and xi sequences, and prefill no more rows than the plan allows."""
    options = PlanOptions(prefill_micro_batch=2, decode_micro_batch=3, num_lanes=2)
    async with bench.running():
        stage = await bench.add_stage("a")
        await bench.run(RAGGED, plan_options=options)

    (load,) = stage.loads
    assert load.num_slots == 6
    assert load.max_frame_tokens == bench.planner.max_prefill_tokens
    for frame in stage.frames:
        assert len(frame.slots) <= (2 if frame.phase is Phase.PREFILL else 3)
        assert frame.num_rows <= bench.planner.max_prefill_tokens
        assert max(frame.slots) < 6


async def test_sampled_answers_depend_on_nothing_but_their_seed(bench: Bench, tokenizer: ModelTokenizer) -> None:
    """The seed of a line reaches the stage; a line without one gets one of its own."""
    seeded = completion("seeded", "hi", 20, temperature=1, seed=7)
    free = completion("free", "hi", 20, temperature=1)
    async with bench.running():
        stage = await bench.add_stage("a")
        _, results = await bench.run([seeded, free])

    texts = {result.custom_id: answer_of(result)["choices"][0]["text"] for result in results}
    assert texts["seeded"] == _expected(tokenizer, seeded, seed=7)
    assert texts["free"] != texts["seeded"]
    assert {draw.seed for frame in stage.frames for draw in frame.sampling} > {7}


async def test_answers_end_at_stop_strings_and_ids(bench: Bench, tokenizer: ModelTokenizer) -> None:
    """An answer ends at a stop string that spans tokens or at a stop id, says so, and is not computed further."""
    whole = _expected(tokenizer, completion("", "hi", 60))
    stop_id = answer(tokenizer.encode("hi"), 60)[5]
    lines = [
        completion("string", "hi", 60, stop=["no such", whole[10:13]]),
        completion("id", "hi", 60, stop_token_ids=[stop_id]),
        completion("none", "hi", 60),
    ]
    async with bench.running():
        await bench.add_stage("a")
        batch, results = await bench.run(lines)
        ignoring, _ = await bench.run(lines, ignore_stop=True)

    bodies = {result.custom_id: answer_of(result) for result in results}
    choices = {name: (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) for name, body in bodies.items()}
    end = whole.index(whole[10:13])
    assert choices["string"] == (whole[:end], "stop")
    assert bodies["string"]["usage"]["completion_tokens"] == end + 3
    assert choices["id"][0] == whole[: answer(tokenizer.encode("hi"), 60).index(stop_id)]
    assert choices["none"] == (whole, "length")
    assert batch.generated_tokens == sum(body["usage"]["completion_tokens"] for body in bodies.values())
    assert batch.remaining_tokens_max == 0
    assert ignoring.generated_tokens == 180


async def test_prompts_are_scored_beside_others_being_continued(bench: Bench, tokenizer: ModelTokenizer) -> None:
    """A scored prompt gets a log-probability for each token but the first, also if it is one token or many chunks."""
    prompts = ["a", "ab", "x" * 100]
    lines = [completion(f"s{n}", prompt, 0, echo=True, logprobs=1) for n, prompt in enumerate(prompts)]
    async with bench.running():
        await bench.add_stage("a")
        await bench.add_stage("b")
        batch, results = await bench.run([*lines, *RAGGED[:6]])

    bodies = {result.custom_id: answer_of(result) for result in results}
    assert batch.requests_completed == 9
    for number, prompt in enumerate(prompts):
        tokens = tokenizer.encode(prompt)
        expected = [score(tokens[:end], tokens[end]) for end in range(1, len(tokens))]
        assert bodies[f"s{number}"]["choices"][0]["logprobs"]["token_logprobs"] == [None, *expected]
        assert bodies[f"s{number}"]["choices"][0]["text"] == prompt
    assert bodies["r5"]["choices"][0]["text"] == _expected(tokenizer, RAGGED[5])


async def test_a_bad_line_harms_no_other(bench: Bench) -> None:
    """Bad lines are errors with their line number; blank lines count as lines and are skipped; the rest is run."""
    async with bench.running():
        await bench.add_stage("a")
        batch, results = await bench.run([RAGGED[0], "", "{", completion("r0", "again", 2), "  ", RAGGED[1]])

    assert batch.state is BatchState.COMPLETED
    assert (batch.requests_total, batch.requests_completed, batch.requests_failed) == (4, 2, 2)
    errors = {result.line_number: json.loads(result.json)["error"] for result in results if result.is_error}
    assert {number: error["line"] for number, error in errors.items()} == {3: 3, 4: 4}
    assert {result.line_number for result in results if not result.is_error} == {1, 6}


async def test_a_batch_of_bad_lines_needs_no_devices(bench: Bench) -> None:
    """If there is nothing to run, the batch is complete without stages."""
    async with bench.running():
        batch, results = await bench.run(["{", "["])

    assert batch.state is BatchState.COMPLETED
    assert [result.is_error for result in results] == [True, True]


async def test_the_lines_may_name_the_model(bench: Bench) -> None:
    """Without a model in the options the lines say which; one that names another is an error."""
    named = completion("a", "hi", 2, model=bench.model)
    other = completion("b", "hi", 2, model="other")
    async with bench.running():
        await bench.add_stage("a")
        batch = await bench.client.submit([named, other])
        results = [result async for result in bench.client.results(batch.batch_id)]
        with pytest.raises(InvalidInputError, match="model"):
            await bench.client.submit([completion("a", "hi", 2)])

    assert batch.model == bench.model
    assert {result.custom_id: result.is_error for result in results} == {"a": False, "b": True}


@pytest.mark.parametrize(
    ("options", "lines", "error", "match"),
    [
        ({"model": "no/such"}, RAGGED, NotFoundError, "no/such"),
        ({}, [], InvalidInputError, "no lines"),
        ({}, ["", " "], InvalidInputError, "no lines"),
        ({"plan_options": PlanOptions(allowed_schemes=("w5",))}, RAGGED, InvalidInputError, "w5"),
        ({"plan_options": PlanOptions(group_size=17)}, RAGGED, InvalidInputError, "17"),
        ({"plan_options": PlanOptions(quality_weight=-1)}, RAGGED, InvalidInputError, "quality_weight"),
        ({"plan_options": PlanOptions(time_limit_s=-1)}, RAGGED, InvalidInputError, "time_limit_s"),
        ({"plan_options": PlanOptions(strategy="luck")}, RAGGED, InvalidInputError, "strategy.*llm-pq, .*uniform"),
        ({"plan_options": PlanOptions(prefill_micro_batch=65_537)}, RAGGED, InvalidInputError, "prefill_micro.*65,536"),
        ({"plan_options": PlanOptions(decode_micro_batch=2**31)}, RAGGED, InvalidInputError, "decode_micro_batch"),
        ({"plan_options": PlanOptions(num_lanes=2**32 - 1)}, RAGGED, InvalidInputError, "num_lanes"),
    ],
)
async def test_what_cannot_be_run_is_refused_at_once(
    bench: Bench, options: dict[str, Any], lines: list[Any], error: type[Exception], match: str
) -> None:
    """A batch that no mesh could run is refused by name, and nothing is stored."""
    async with bench.running():
        with pytest.raises(error, match=match):
            await bench.client.submit(lines, **({"model": bench.model} | options))
        assert [batch async for batch in bench.client.list()] == []


async def test_the_first_message_must_have_options(bench: Bench) -> None:
    """Lines without options before them are INVALID_ARGUMENT."""
    async with bench.running(), open_channel(bench.address) as channel:
        call = CoordinatorServiceStub(channel).SubmitBatch(iter([pb.SubmitBatchRequest(lines=["{}"])]), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_only_the_first_message_may_have_options(bench: Bench) -> None:
    """Options that would be ignored are INVALID_ARGUMENT."""
    options = pb.BatchOptions(model=bench.model)
    messages = [pb.SubmitBatchRequest(options=options, lines=["{}"]), pb.SubmitBatchRequest(options=options)]
    async with bench.running(), open_channel(bench.address) as channel:
        with pytest.raises(InvalidInputError, match="first message"), rpc_errors():
            await CoordinatorServiceStub(channel).SubmitBatch(iter(messages), timeout=10)


async def test_what_is_no_number_is_refused(bench: Bench) -> None:
    """A time limit of NaN, which any client can send, is INVALID_ARGUMENT."""
    options = pb.BatchOptions(model=bench.model, plan_options=plan_pb2.PlanOptions(time_limit_s=float("nan")))
    messages = [pb.SubmitBatchRequest(options=options, lines=["{}"])]
    async with bench.running(), open_channel(bench.address) as channel:
        with pytest.raises(InvalidInputError, match="time_limit_s"), rpc_errors():
            await CoordinatorServiceStub(channel).SubmitBatch(iter(messages), timeout=10)


async def test_a_model_without_a_readable_tokenizer_is_refused(bench: Bench, tmp_path: Path) -> None:
    """A tokenizer that is missing or damaged is known when the batch is submitted, by the model's name."""
    missing, damaged = tmp_path / "missing", tmp_path / "damaged"
    for model in (missing, damaged):
        shutil.copytree(bench.model, model)
    for path in missing.glob("*token*"):
        path.unlink()
    (damaged / "tokenizer.json").write_text("{")
    async with bench.running():
        with pytest.raises(NotFoundError, match=f"{missing}.*no tokenizer"):
            await bench.client.submit(RAGGED, model=str(missing))
        with pytest.raises(InvalidInputError, match=f"tokenizer of the model at '{damaged}'"):
            await bench.client.submit(RAGGED, model=str(damaged))


async def test_a_request_id_is_submitted_once(bench: Bench) -> None:
    """Submitting again under the same request_id returns the same batch."""
    async with bench.running():
        first = await bench.client.submit(RAGGED, model=bench.model, request_id="once")
        again = await bench.client.submit(RAGGED, model=bench.model, request_id="once")
        assert again.batch_id == first.batch_id
        assert len([batch async for batch in bench.client.list()]) == 1


async def test_a_full_queue_says_when_to_try_again(bench: Bench) -> None:
    """Beyond the limit a submission is RESOURCE_EXHAUSTED with RetryInfo, until a batch has ended."""
    async with bench.running(max_queued_requests=30):
        first = await bench.client.submit(RAGGED, model=bench.model)
        with pytest.raises(OverloadedError) as overloaded:
            await bench.client.submit(RAGGED, model=bench.model)
        await bench.client.cancel(first.batch_id)
        assert await bench.client.submit(RAGGED, model=bench.model)
    assert overloaded.value.retry_after_s > 0


async def test_without_devices_a_batch_waits_and_says_so(bench: Bench) -> None:
    """Until a stage registers the batch is planning, and its status message says what it waits for."""
    async with bench.running():
        batch = await bench.client.submit(RAGGED, model=bench.model)
        waiting = await watched(bench.client, batch.batch_id, lambda batch: "no devices" in batch.status_message)
        await bench.add_stage("a")
        ended = await watched(bench.client, batch.batch_id, lambda batch: batch.state.is_final)

    assert waiting.state is BatchState.PLANNING
    assert ended.state is BatchState.COMPLETED


async def test_batches_run_one_after_another(bench: Bench) -> None:
    """The queue is first in, first out."""
    async with bench.running():
        batches = [await bench.client.submit(RAGGED[:5], model=bench.model) for _ in range(3)]
        await bench.add_stage("a")
        for batch in batches:
            await watched(bench.client, batch.batch_id, lambda batch: batch.state.is_final)
        ended = [await bench.client.get(batch.batch_id) for batch in batches]

    assert all(one.end_time <= next_.start_time for one, next_ in pairwise(ended))


async def test_a_running_batch_can_be_cancelled(bench: Bench) -> None:
    """Finished requests keep their answers, the others get `batch_cancelled`, and the next batch runs."""
    lines = [completion("short", "hi", 2), *LONG, "{"]
    async with bench.running():
        stage = await bench.add_stage("a", frame_delay_s=0.01)
        batch = await bench.client.submit(lines, model=bench.model)
        await watched(bench.client, batch.batch_id, lambda batch: batch.requests_completed == 1)
        cancelled = await bench.client.cancel(batch.batch_id)
        results = [result async for result in bench.client.results(batch.batch_id)]
        assert await bench.client.cancel(batch.batch_id) == cancelled
        stage.frame_delay_s = 0
        after, _ = await bench.run(RAGGED[:3])

    assert cancelled.state is BatchState.CANCELLED
    assert (cancelled.requests_completed, cancelled.requests_failed) == (1, 5)
    assert cancelled.remaining_tokens_max == 0
    codes = {result.custom_id: json.loads(result.json)["error"]["code"] for result in results if result.is_error}
    assert codes == {f"long{n}": "batch_cancelled" for n in range(4)} | {"": "invalid_json_line"}
    assert after.state is BatchState.COMPLETED


async def test_a_waiting_batch_can_be_cancelled(bench: Bench) -> None:
    """A batch that has not begun is cancelled with an error for each line, under the line's own custom_id."""
    async with bench.running():
        await bench.client.submit(LONG, model=bench.model)
        queued = await bench.client.submit(RAGGED, model=bench.model)
        cancelled = await bench.client.cancel(queued.batch_id)
        results = [result async for result in bench.client.results(queued.batch_id)]

    assert cancelled.state is BatchState.CANCELLED
    assert {result.custom_id for result in results} == {line["custom_id"] for line in RAGGED}
    assert all(result.is_error for result in results)


async def test_cancelling_what_ended_changes_nothing(bench: Bench) -> None:
    """A batch in a final state stays as it is, and an unknown one is NOT_FOUND."""
    async with bench.running():
        await bench.add_stage("a")
        batch, _ = await bench.run(RAGGED[:2])
        assert await bench.client.cancel(batch.batch_id) == batch
        with pytest.raises(NotFoundError, match="batch_x"):
            await bench.client.cancel("batch_x")


async def test_watching_ends_with_the_batch_and_can_be_joined_at_any_time(bench: Bench) -> None:
    """Every snapshot differs from the one before, counts never fall, and the last is final, also for who joins late."""
    async with bench.running():
        await bench.add_stage("a", frame_delay_s=0.02)
        batch = await bench.client.submit(RAGGED, model=bench.model)
        snapshots = [snapshot async for snapshot in bench.client.watch(batch.batch_id)]
        late = [snapshot async for snapshot in bench.client.watch(batch.batch_id)]
        with pytest.raises(NotFoundError):
            [_ async for _ in bench.client.watch("batch_x")]

    counts = [snapshot.generated_tokens for snapshot in snapshots]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2
    assert all(one != other for one, other in pairwise(snapshots))
    assert snapshots[-1].state is BatchState.COMPLETED
    assert late == snapshots[-1:]


async def test_results_come_exactly_once_however_often_a_client_reconnects(bench: Bench) -> None:
    """A client that goes on after the last number it has gets every result once, in the order of completion."""
    async with bench.running():
        await bench.add_stage("a", frame_delay_s=0.005)
        batch = await bench.client.submit(RAGGED, model=bench.model)
        got = []
        while len(got) < len(RAGGED):
            async for result in bench.client.results(batch.batch_id, after=got[-1].sequence if got else 0):
                got.append(result)
                if len(got) % 3 == 0:
                    break
        whole = [result async for result in bench.client.results(batch.batch_id)]
        rest = [result async for result in bench.client.results(batch.batch_id, after=15, follow=False)]

    assert got == whole
    assert rest == whole[15:]
    assert len({result.custom_id for result in got}) == len(RAGGED)


async def test_without_following_the_results_of_the_moment_are_all(bench: Bench) -> None:
    """A client that does not follow gets what there is, and an unknown batch is NOT_FOUND."""
    async with bench.running():
        batch = await bench.client.submit(RAGGED, model=bench.model)
        assert [_ async for _ in bench.client.results(batch.batch_id, follow=False)] == []
        with pytest.raises(NotFoundError):
            [_ async for _ in bench.client.results("batch_x")]


async def test_the_cluster_says_who_holds_what(bench: Bench) -> None:
    """Members are listed by name, with address, description and the plan they hold."""
    async with bench.running():
        for name in ("b", "a"):
            await bench.add_stage(name)
        batch, _ = await bench.run(RAGGED[:2])
        cluster = await bench.client.cluster()

    assert cluster.planner_address == bench.planner.address
    assert [stage.device_id for stage in cluster.stages] == ["a", "b"]
    assert {stage.plan_hash for stage in cluster.stages} == {batch.plan.hash}
    assert cluster.stages[0].description == bench.stages["a"].description
    assert cluster.stages[0].address == bench.stages["a"].address


async def test_a_stage_that_cannot_hold_its_slice_fails_the_batch_in_the_end(bench: Bench) -> None:
    """Failing again and again without a single token ends the batch with the reason; every line has an error."""
    async with bench.running(lease_ttl_s=0.3):
        stage = await bench.add_stage("a")
        stage.load_error = too_large("a")
        batch, results = await bench.run(RAGGED[:3])

    assert batch.state is BatchState.FAILED
    assert "1,000 bytes short" in batch.status_message
    assert {json.loads(result.json)["error"]["code"] for result in results} == {"batch_failed"}


async def test_a_stage_without_the_model_fails_the_batch(bench: Bench) -> None:
    """What would fail the same way again is not tried again."""
    async with bench.running():
        stage = await bench.add_stage("a")
        stage.load_error = NotFoundError("No model here.", subject="model")
        batch, _ = await bench.run(RAGGED[:3])

    assert batch.state is BatchState.FAILED
    assert batch.status_message == "No model here."
    assert len(bench.planner.problems) == 1


async def test_a_batch_whose_end_cannot_be_stored_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the text of a batch's errors cannot be written, it ends without that text, and the next batch runs."""
    async with bench.running(lease_ttl_s=0.3):
        stage = await bench.add_stage("a")
        stage.load_error = NotFoundError("No model here.", subject="model")
        monkeypatch.setattr("coordinator.runner.custom_id_of", lambda _: "x\ud800")
        batch, results = await bench.run(RAGGED[:3])
        stage.load_error = None
        after, _ = await bench.run(RAGGED[:3])

    assert batch.state is BatchState.FAILED
    assert "could not be stored" in batch.status_message
    assert [result.is_error for result in results] == [True] * 3
    assert after.state is BatchState.COMPLETED


async def test_a_plan_that_never_fits_fails_a_new_batch(bench: Bench) -> None:
    """A new batch for which there is no feasible plan fails with the planner's reason once nobody else has joined."""
    bench.planner.min_devices = 2
    async with bench.running(lease_ttl_s=0.3):
        await bench.add_stage("a")
        batch, _ = await bench.run(RAGGED[:3])

    assert batch.state is BatchState.FAILED
    assert "No plan fits" in batch.status_message


async def test_a_plan_that_does_not_fit_yet_waits_a_moment(bench: Bench) -> None:
    """A device that joins within the grace makes the plan feasible."""
    bench.planner.min_devices = 2
    async with bench.running(lease_ttl_s=3.0):
        await bench.add_stage("a")
        batch = await bench.client.submit(RAGGED[:3], model=bench.model)
        await watched(bench.client, batch.batch_id, lambda batch: "Waiting for other devices" in batch.status_message)
        await bench.add_stage("b")
        ended = await watched(bench.client, batch.batch_id, lambda batch: batch.state.is_final)

    assert ended.state is BatchState.COMPLETED
