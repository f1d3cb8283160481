"""The stage server as its neighbours see it, over real gRPC, with a stand-in for the coordinator's end of the ring."""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from weakref import ref

import grpc
import numpy as np
import pytest
import torch
from parity_models import VOCABULARY, SaveModel
from raw_stream import forward_messages
from tiny_models import save_wide_llama

from llmpq.bench.wire_echo import receiving
from llmpq.device import Phase
from llmpq.errors import (
    CorruptDataError,
    DoesNotFitError,
    InvalidInputError,
    MeshError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from llmpq.frames import (
    SERVICE_NAME,
    DataType,
    Frame,
    FrameOutput,
    Sampling,
    encode_frame,
)
from llmpq.model import read_shape
from llmpq.rpc import open_channel, rpc_errors, serving
from llmpq.rpc.data_plane import ForwardStream, add_forward_handler
from llmpq.rpc.frame_sink import FrameSink
from llmpq.v1 import activation_service_pb2, activation_service_pb2_grpc, stage_service_pb2_grpc
from llmpq.v1 import stage_service_pb2 as pb
from stage_server.config import StageConfig
from stage_server.device import open_device
from stage_server.load_check import expected_memory
from stage_server.model_slice import ModelSlice
from stage_server.service import FrameReceiver, StageServicer
from stage_server.stage import Stage

PROMPTS = [[5, 17, 101, 3, 9], [44], [7, 7, 150, 21, 66, 90, 12]]
NUM_LAYERS = 3


class ResultSink(FrameSink):
    """The coordinator's end of the ring: collects result frames."""

    def __init__(self) -> None:
        self.results: asyncio.Queue[Frame] = asyncio.Queue()

    def take(self, frame: Frame) -> None:
        """Queues it."""
        self.results.put_nowait(frame)


@asynccontextmanager
async def stage_server(
    memory_budget: int = 10**9, compute_dtype: torch.dtype = torch.float32
) -> AsyncIterator[tuple[str, Stage]]:
    """A stage server in this process: its address and its state."""
    device = replace(open_device(StageConfig(memory_budget=memory_budget)), compute_dtype=compute_dtype)
    async with Stage("stage-under-test", device) as stage:

        def add(server: grpc.aio.Server) -> None:
            stage_service_pb2_grpc.add_StageServiceServicer_to_server(StageServicer(stage), server)
            add_forward_handler(server, partial(FrameReceiver, stage))

        async with serving("127.0.0.1:0", add, ("llmpq.v1.StageService", SERVICE_NAME)) as server:
            yield server.address, stage


@asynccontextmanager
async def result_sink() -> AsyncIterator[tuple[str, ResultSink]]:
    """A sink in this process: its address and what it received."""
    sink = ResultSink()
    async with receiving("127.0.0.1:0", sink) as address:
        yield address, sink


def load_request(
    model: str, next_address: str, *, stage: int = 0, cuts: Sequence[int] = (), **changes: object
) -> pb.LoadStageRequest:
    """A request for one stage of a pipeline cut at `cuts`, everything at w16."""
    bounds = [0, *cuts, NUM_LAYERS]
    request = pb.LoadStageRequest(
        deployment_id="deployment",
        plan_hash="hash",
        model=model,
        stage=stage,
        num_stages=len(bounds) - 1,
        first_layer=bounds[stage],
        num_slots=4,
        max_sequence_tokens=32,
        max_frame_tokens=64,
        next_address=next_address,
    )
    for _ in range(bounds[stage + 1] - bounds[stage]):
        request.layers.add(scheme="w16")
    return replaced(request, changes)


def replaced(request: pb.LoadStageRequest, changes: Mapping[str, object]) -> pb.LoadStageRequest:
    """The request with other values in some fields."""
    for field, value in changes.items():
        setattr(request, field, value)
    return request


async def load(address: str, request: pb.LoadStageRequest) -> list[pb.LoadStageResponse]:
    """Loads a stage; raises the typed error if that fails."""
    async with open_channel(address) as channel:
        with rpc_errors(address):
            return [response async for response in stage_service_pb2_grpc.StageServiceStub(channel).LoadStage(request)]


def token_frame(
    frame_id: int, phase: Phase, tokens: Sequence[Sequence[int]], starts: Sequence[int], **fields: object
) -> Frame:
    """A frame of token ids for slots 0, 1, ... that asks every sequence for a token."""
    rows = np.array([token for sequence in tokens for token in sequence], dtype="<i4")
    frame = Frame(
        deployment_id="deployment",
        frame_id=frame_id,
        phase=phase,
        slots=list(range(len(tokens))),
        starts=list(starts),
        counts=[len(sequence) for sequence in tokens],
        data_type=DataType.INT32,
        dimensions=(len(rows),),
        payload=rows.tobytes(),
        output=FrameOutput.TOKENS,
        emits=[True] * len(tokens),
    )
    return replace(frame, **fields)


def int32_of(frame: Frame) -> list[int]:
    """Tokens of a result frame."""
    return np.frombuffer(frame.payload, dtype="<i4").tolist()


@asynccontextmanager
async def pipeline(
    model: str, num_stages: int, compute_dtypes: Sequence[torch.dtype] = (), **changes: object
) -> AsyncIterator[tuple[ForwardStream, ResultSink]]:
    """Loaded stage servers in a row with a sink behind them, and the stream into the first."""
    cuts = range(1, num_stages)
    dtypes = compute_dtypes or [torch.float32] * num_stages
    async with AsyncExitStack() as stack:
        next_address, sink = await stack.enter_async_context(result_sink())
        for stage in reversed(range(num_stages)):
            address, _ = await stack.enter_async_context(stage_server(compute_dtype=dtypes[stage]))
            await load(address, load_request(model, next_address, stage=stage, cuts=cuts, **changes))
            next_address = address
        stream = await stack.enter_async_context(ForwardStream(next_address))
        yield stream, sink


@pytest.mark.parametrize("num_stages", [1, 2, 3])
async def test_tokens_through_stages_equal_transformers(save_model: SaveModel, num_stages: int) -> None:
    """Frames sent through one, two or three stage servers bring back transformers' greedy tokens, with timings."""
    directory, model = save_model("llama-gqa-untied")
    async with pipeline(directory, num_stages) as (stream, sink):
        sequences = [list(prompt) for prompt in PROMPTS]
        await stream.send(token_frame(0, Phase.PREFILL, sequences, (0, 0, 0)))
        for step in range(1, 9):
            result = await sink.results.get()
            assert [timing.stage for timing in result.timings] == list(range(num_stages))
            starts = [len(sequence) for sequence in sequences]
            for sequence, token in zip(sequences, int32_of(result), strict=True):
                sequence.append(token)
            last = [sequence[-1:] for sequence in sequences]
            await stream.send(token_frame(step, Phase.DECODE, last, starts))

    for prompt, sequence in zip(PROMPTS, sequences, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=8, min_new_tokens=8, do_sample=False)
        assert sequence == expected[0].tolist()


async def test_scores_equal_log_softmax(save_model: SaveModel) -> None:
    """A frame that asks for scores brings back the log-probability of each target and of nothing else."""
    directory, model = save_model("opt")
    prompt = PROMPTS[2]
    targets = [*prompt[1:], -1]
    async with pipeline(directory, 2) as (stream, sink):
        frame = token_frame(0, Phase.PREFILL, [prompt], (0,), output=FrameOutput.SCORES, emits=[], targets=targets)
        await stream.send(frame)
        result = await sink.results.get()

    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    scores = torch.tensor(np.frombuffer(result.payload, dtype="<f4").copy())
    torch.testing.assert_close(scores, expected[range(len(prompt) - 1), prompt[1:]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("narrow_stage", [0, 1])
async def test_stages_may_compute_in_different_types(save_model: SaveModel, narrow_stage: int) -> None:
    """A stage that computes in bfloat16, as on a GPU, passes on to one in float32, as on a CPU, and the other way."""
    directory, model = save_model("llama-gqa-untied")
    prompt = PROMPTS[2]
    dtypes = [torch.float32, torch.float32]
    dtypes[narrow_stage] = torch.bfloat16
    async with pipeline(directory, 2, dtypes) as (stream, sink):
        targets = [*prompt[1:], -1]
        frame = token_frame(0, Phase.PREFILL, [prompt], (0,), output=FrameOutput.SCORES, emits=[], targets=targets)
        await stream.send(frame)
        result = await sink.results.get()

    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0].log_softmax(-1)[range(len(prompt) - 1), prompt[1:]]
    scores = torch.tensor(np.frombuffer(result.payload, dtype="<f4").copy())
    torch.testing.assert_close(scores, expected, atol=0.1, rtol=0.02)


async def test_hidden_states_in_8_bits_are_rounded_once_between_stages(save_model: SaveModel) -> None:
    """Scores are those of a model whose hidden states are rounded in groups of 64 where the stages meet."""
    directory, model = save_model("llama-gqa-untied")
    prompt = PROMPTS[2]
    targets = [*prompt[1:], -1]
    async with pipeline(directory, 2, has_int8_activations=True) as (stream, sink):
        frame = token_frame(0, Phase.PREFILL, [prompt], (0,), output=FrameOutput.SCORES, emits=[], targets=targets)
        await stream.send(frame)
        result = await sink.results.get()

    def rounded(_module: object, _inputs: object, hidden: torch.Tensor) -> torch.Tensor:
        groups = hidden.split(64, dim=-1)
        scales = [group.abs().amax(dim=-1, keepdim=True) / 127 for group in groups]
        return torch.cat([torch.round(g / s) * s for g, s in zip(groups, scales, strict=True)], dim=-1)

    def scores_of_model() -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([prompt])).logits[0].log_softmax(-1)[range(len(prompt) - 1), prompt[1:]]

    exact = scores_of_model()
    model.model.layers[0].register_forward_hook(rounded)
    scores = torch.tensor(np.frombuffer(result.payload, dtype="<f4").copy())
    torch.testing.assert_close(scores, scores_of_model(), atol=1e-3, rtol=1e-3)
    assert (scores - exact).abs().max() > 3 * (scores - scores_of_model()).abs().max()


async def test_only_emitting_sequences_return_tokens(save_model: SaveModel) -> None:
    """An inner chunk of a prompt fills the cache and returns nothing; its last chunk returns the token."""
    directory, model = save_model("llama-mha-tied")
    prompt = PROMPTS[2]
    async with pipeline(directory, 1) as (stream, sink):
        await stream.send(token_frame(0, Phase.PREFILL, [prompt[:4]], (0,), emits=[False]))
        await stream.send(token_frame(1, Phase.PREFILL, [prompt[4:]], (4,)))
        first, second = await sink.results.get(), await sink.results.get()

    expected = model.generate(torch.tensor([prompt]), max_new_tokens=1, do_sample=False)[0, -1]
    assert int32_of(first) == []
    assert int32_of(second) == [int(expected)]


async def test_generated_stub_can_send_frames(save_model: SaveModel) -> None:
    """An ordinary generated client speaks to the data plane and receives acknowledgements."""
    directory, _ = save_model("opt")
    async with stage_server() as (address, _), result_sink() as (sink_address, sink):
        await load(address, load_request(directory, sink_address))
        message = activation_service_pb2.ForwardRequest.FromString(
            encode_frame(token_frame(3, Phase.PREFILL, PROMPTS, (0, 0, 0))),
        )
        async with open_channel(address) as channel:
            call = activation_service_pb2_grpc.ActivationServiceStub(channel).Forward()
            await call.write(message)
            acknowledged = await call.read()
            result = await sink.results.get()
            call.cancel()

    assert isinstance(acknowledged, activation_service_pb2.ForwardResponse)
    assert acknowledged.frame_id == result.frame_id == 3


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"deployment_id": "another"}, PreconditionError, "another"),
        ({"slots": [0, 1, 9]}, InvalidInputError, "slots"),
        ({"slots": [0, 0, 1]}, InvalidInputError, "distinct"),
        ({"starts": [30, 0, 0]}, InvalidInputError, "over the 32"),
        ({"starts": [3, 0, 0]}, InvalidInputError, "behind the tokens"),
        ({"phase": Phase.DECODE}, InvalidInputError, "one row a sequence"),
        ({"sampling": [Sampling(temperature=float("nan"))] * 3}, InvalidInputError, "temperature"),
        ({"sampling": [Sampling(temperature=-1.0)] * 3}, InvalidInputError, "temperature"),
        ({"sampling": [Sampling(temperature=1.0, top_p=-1.0)] * 3}, InvalidInputError, "top_p"),
        ({"output": FrameOutput.SCORES, "emits": [], "targets": [-7] * 12}, InvalidInputError, "targets"),
        ({"payload": np.full(13, VOCABULARY, "<i4").tobytes()}, InvalidInputError, "token ids"),
        ({"data_type": DataType.FLOAT32}, InvalidInputError, "int32"),
    ],
)
async def test_bad_frame_ends_the_stream_with_a_typed_error(
    save_model: SaveModel,
    changes: dict[str, object],
    error: type[MeshError],
    says: str,
) -> None:
    """A frame that does not belong here is refused by name and never computed."""
    directory, _ = save_model("opt")
    async with pipeline(directory, 1) as (stream, sink):
        await stream.send(replace(token_frame(0, Phase.PREFILL, PROMPTS, (0, 0, 0)), **changes))
        with pytest.raises(error, match=says):
            await stream.watch()
        assert sink.results.empty()


async def test_a_stage_takes_up_no_more_than_the_next_large_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a frame of several messages waits behind the one that is computed, further ones wait with their sender."""
    model, num_rows, width = str(save_wide_llama(tmp_path)), 150, 8192
    frame = replace(
        token_frame(0, Phase.PREFILL, [[0] * num_rows], (0,)),
        data_type=DataType.FLOAT32,
        dimensions=(num_rows, width),
        payload=np.random.default_rng(0).standard_normal((num_rows, width), dtype=np.float32).tobytes(),
    )
    may_compute, compute = threading.Event(), ModelSlice.hidden_states
    async with stage_server() as (address, stage), result_sink() as (sink_address, sink):
        request = load_request(model, sink_address, stage=1, cuts=(1,), max_sequence_tokens=256, max_frame_tokens=256)
        await load(address, request)
        monkeypatch.setattr(ModelSlice, "hidden_states", lambda *given: may_compute.wait(30) and compute(*given))
        async with ForwardStream(address) as stream:

            async def send_all() -> None:
                for number in range(5):
                    await stream.send(replace(frame, frame_id=number))

            sending = asyncio.create_task(send_all())
            await stream.acknowledged()
            await stream.acknowledged()
            assert stage.deployment is not None
            assert not stage.deployment.has_room.is_set()
            may_compute.set()
            results = [await sink.results.get() for _ in range(5)]
            await sending
    assert [result.frame_id for result in results] == list(range(5))
    assert len({tuple(int32_of(result)) for result in results}) == 1


async def test_corrupt_payload_is_data_loss(save_model: SaveModel) -> None:
    """A payload that was changed on the way is refused as DATA_LOSS."""
    directory, _ = save_model("opt")
    raw = bytearray(encode_frame(token_frame(0, Phase.PREFILL, PROMPTS, (0, 0, 0))))
    raw[-4] ^= 1
    async with stage_server() as (address, _), result_sink() as (sink_address, sink):
        await load(address, load_request(directory, sink_address))
        with pytest.raises(CorruptDataError, match="checksum"):
            await forward_messages(address, [bytes(raw)])
        assert sink.results.empty()


async def test_frame_to_an_empty_stage_is_refused() -> None:
    """A stage that holds nothing says so instead of computing."""
    async with stage_server() as (address, _), ForwardStream(address) as stream:
        await stream.send(token_frame(0, Phase.PREFILL, PROMPTS, (0, 0, 0)))
        with pytest.raises(PreconditionError, match="holds no deployment"):
            await stream.watch()


async def test_unreachable_next_stage_ends_the_stream(save_model: SaveModel) -> None:
    """A stage whose next one is gone fails its own stream, so that the coordinator learns of it, and says so itself."""
    directory, _ = save_model("opt")
    async with stage_server() as (address, _), open_channel(address) as channel:
        await load(address, load_request(directory, "127.0.0.1:1"))
        async with ForwardStream(address) as stream:
            await stream.send(token_frame(0, Phase.PREFILL, PROMPTS, (0, 0, 0)))
            with pytest.raises(UnavailableError):
                await stream.watch()
        stub = stage_service_pb2_grpc.StageServiceStub(channel)
        assert (await stub.GetStage(pb.GetStageRequest())).state == pb.STAGE_STATE_FAILED


@pytest.mark.parametrize("has_int8_kv_cache", [False, True], ids=["float-cache", "int8-cache"])
async def test_load_reports_progress_and_measured_memory(save_model: SaveModel, *, has_int8_kv_cache: bool) -> None:
    """Loading streams a message for each layer at least, and the tensors take what the shared formula says."""
    directory, _ = save_model("llama-gqa-untied")
    async with stage_server() as (address, stage):
        request = load_request(directory, "127.0.0.1:1", num_slots=2, has_int8_kv_cache=has_int8_kv_cache)
        del request.layers[:]
        for scheme in ("w16", "w4", "w3"):
            request.layers.add(scheme=scheme, group_size=64)
        responses = await load(address, request)
        expected = expected_memory(stage.deployment.load, read_shape(directory), stage.device.description)

    assert list(dict.fromkeys(response.layers_done for response in responses)) == [0, 1, 2, 3]
    assert responses[-1].memory.layer_bytes == expected.layer_bytes
    assert responses[-1].memory.embedding_head_bytes == expected.embedding_head_bytes
    assert responses[-1].memory.kv_bytes == expected.kv_bytes


async def test_same_weights_are_kept_and_other_weights_replaced(save_model: SaveModel) -> None:
    """Loading the same slice again with another cache keeps the weights; another precision loads new ones."""
    directory, _ = save_model("opt")
    async with stage_server() as (address, stage):
        await load(address, load_request(directory, "127.0.0.1:1"))
        first = stage.deployment._weights
        again = await load(address, load_request(directory, "127.0.0.1:1", num_slots=2, deployment_id="second"))
        assert stage.deployment._weights is first
        assert len(again) == 1
        request = load_request(directory, "127.0.0.1:1")
        request.layers[0].scheme = "w8"
        await load(address, request)
        assert stage.deployment._weights is not first


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model": "/nowhere"}, NotFoundError, "/nowhere"),
        ({"first_layer": 2}, InvalidInputError, "layers of a model of 3"),
        ({"num_slots": 0}, InvalidInputError, "num_slots"),
        ({"num_stages": 2}, InvalidInputError, "the first stage, and no other"),
        ({"deployment_id": ""}, InvalidInputError, "deployment_id"),
        ({"next_address": "garbage"}, InvalidInputError, "next_address"),
        ({"max_sequence_tokens": 4096}, InvalidInputError, "context of 128"),
        ({"num_slots": 10**6}, DoesNotFitError, "stage-under-test"),
    ],
)
async def test_bad_load_is_refused_and_the_deployment_stays(
    save_model: SaveModel,
    changes: dict[str, object],
    error: type[MeshError],
    says: str,
) -> None:
    """A load that cannot be is refused before anything is thrown away."""
    directory, _ = save_model("opt")
    async with stage_server() as (address, stage):
        await load(address, load_request(directory, "127.0.0.1:1"))
        with pytest.raises(error, match=says):
            await load(address, replaced(load_request(directory, "127.0.0.1:1"), changes))
        assert stage.deployment is not None


async def test_the_cache_of_an_ended_deployment_is_gone_before_the_next_one_is_made(save_model: SaveModel) -> None:
    """Plans have room for one cache, and what has ended may be referred to a while longer."""
    directory, _ = save_model("llama-bias")
    async with result_sink() as (sink_address, _), stage_server() as (address, stage):
        caches = []
        for name in ("one", "two", "three"):
            await load(address, load_request(directory, next_address=sink_address, deployment_id=name))
            assert stage.deployment is not None
            caches.append(ref(stage.deployment._cache))
        assert [cache() is None for cache in caches] == [True, True, False]


async def test_unknown_and_unrunnable_schemes_are_refused(save_model: SaveModel) -> None:
    """A scheme that does not exist is bad input; one that the device cannot run is a failed precondition."""
    directory, _ = save_model("opt")
    async with stage_server() as (address, stage):
        request = load_request(directory, "127.0.0.1:1")
        request.layers[1].scheme = "w5"
        with pytest.raises(InvalidInputError, match="w5"):
            await load(address, request)
        description = replace(stage.device.description, schemes=("w16",))
        stage.device = replace(stage.device, description=description)
        request.layers[1].scheme = "w3"
        with pytest.raises(PreconditionError, match="cannot run scheme 'w3'"):
            await load(address, request)


async def test_a_profile_is_kept_until_a_fresh_one_is_asked_for(save_model: SaveModel) -> None:
    """A stage that starts later gives the same times, without measuring; asked for fresh ones, it measures again."""
    directory, _ = save_model("opt")
    profiles = []
    for is_fresh in (False, False, True):
        async with stage_server() as (address, _), open_channel(address) as channel:
            stub = stage_service_pb2_grpc.StageServiceStub(channel)
            request = pb.ProfileLayersRequest(model=directory, schemes=["w16"], is_fresh=is_fresh)
            profiles.append([response.point async for response in stub.ProfileLayers(request)])
    first, kept, fresh = profiles
    assert kept == first
    assert fresh != first


async def test_a_profile_beside_another_number_of_busy_devices_is_measured_again(save_model: SaveModel) -> None:
    """Devices of a host share its memory, so a time holds for as many at work only."""
    directory, _ = save_model("opt")
    async with stage_server() as (address, _), open_channel(address) as channel:
        stub = stage_service_pb2_grpc.StageServiceStub(channel)
        profiles = [
            [
                response.point
                async for response in stub.ProfileLayers(
                    pb.ProfileLayersRequest(model=directory, schemes=["w16"], busy_neighbours=number)
                )
            ]
            for number in (0, 1, 0)
        ]
        request = pb.ProfileLayersRequest(model=directory, schemes=["w16"], busy_neighbours=2, only_kept=True)
        assert [response async for response in stub.ProfileLayers(request)] == []
    alone, beside, again = profiles
    assert beside != alone
    assert again == alone


async def test_a_stage_is_kept_busy_until_the_call_ends(save_model: SaveModel) -> None:
    """It says once that it is at work, and takes a load when nobody wants it to be any more."""
    directory, _ = save_model("opt")
    async with stage_server() as (address, stage), result_sink() as (sink_address, _), open_channel(address) as channel:
        stub = stage_service_pb2_grpc.StageServiceStub(channel)
        call = stub.KeepBusy(pb.KeepBusyRequest(model=directory))
        assert isinstance(await call.read(), pb.KeepBusyResponse)
        with pytest.raises(PreconditionError, match="is computing"), rpc_errors(address):
            await stub.KeepBusy(pb.KeepBusyRequest(model=directory)).read()
        loading = asyncio.create_task(load(address, load_request(directory, sink_address)))
        done, _ = await asyncio.wait({loading}, timeout=0.3)
        assert not done
        call.cancel()
        await loading
        assert stage.deployment is not None
        await stage.unload()


async def test_profile_and_ratings_cover_what_was_asked(save_model: SaveModel) -> None:
    """Profiling yields every announced point in both phases; rating yields each layer, worse for fewer bits."""
    directory, _ = save_model("llama-bias")
    async with stage_server() as (address, _), open_channel(address) as channel:
        stub = stage_service_pb2_grpc.StageServiceStub(channel)
        request = pb.ProfileLayersRequest(model=directory, schemes=["w16", "w4"], group_size=32)
        points = [response async for response in stub.ProfileLayers(request)]
        rating = pb.MeasureSensitivityRequest(
            model=directory,
            schemes=["w8", "w4", "w3"],
            group_size=32,
            samples=[pb.TokenSequence(token_ids=prompt) for prompt in PROMPTS],
        )
        layers = [response async for response in stub.MeasureSensitivity(rating)]

    assert points[-1].points_done == points[-1].points_total == len(points)
    assert all(response.point.duration_ns > 0 for response in points)
    assert {(response.point.scheme, response.point.phase) for response in points} >= {
        (scheme, phase) for scheme in ("w16", "w4") for phase in (1, 2)
    }
    omegas = {(entry.layer, entry.scheme): entry.omega for response in layers for entry in response.sensitivities}
    assert len(omegas) == 3 * 3
    for layer in range(3):
        assert 0 < omegas[layer, "w8"] < min(omegas[layer, "w4"], omegas[layer, "w3"])
    # Three samples are too few to tell 4 bits from 3 in each single layer.
    assert sum(omegas[layer, "w4"] for layer in range(3)) < sum(omegas[layer, "w3"] for layer in range(3))
