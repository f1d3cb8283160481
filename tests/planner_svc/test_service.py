"""The servicer over real gRPC, and the process."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmpq.messages import from_message, to_message
from llmpq.plan import OFFLOADING_STRATEGIES, STRATEGIES, Plan, PlanningProblem
from llmpq.rpc import open_channel, serving
from llmpq.v1 import planner_service_pb2, planner_service_pb2_grpc
from planner_svc.planner import Planner
from planner_svc.search import OnProgress, Progress
from planner_svc.service import SERVICE_NAME, PlannerService

Problem = planner_service_pb2.PlanningProblem


async def _served(planner: Planner) -> AsyncIterator[planner_service_pb2_grpc.PlannerServiceStub]:
    async with (
        serving(
            "127.0.0.1:0",
            lambda server: planner_service_pb2_grpc.add_PlannerServiceServicer_to_server(
                PlannerService(planner), server
            ),
            [SERVICE_NAME],
        ) as server,
        open_channel(server.address) as channel,
    ):
        stub = planner_service_pb2_grpc.PlannerServiceStub(channel)
        stub.health = health_pb2_grpc.HealthStub(channel)  # type: ignore[attr-defined]
        yield stub


@pytest.fixture
async def stub() -> AsyncIterator[Any]:
    """A stub of a served planner."""
    async for served in _served(Planner(time_limit_s=20.0)):
        yield served


@pytest.fixture
def message(problem: PlanningProblem) -> Problem:
    """The problem as a message."""
    fields = to_message(problem, Problem)
    fields.ClearField("options")
    fields.options.time_limit_s = 20
    return fields


async def create(stub: Any, message: Problem) -> list[planner_service_pb2.CreatePlanResponse]:
    """All responses of CreatePlan."""
    call = stub.CreatePlan(planner_service_pb2.CreatePlanRequest(problem=message), timeout=60)
    return [response async for response in call]


async def test_streams_progress_then_the_plan(stub: Any, message: Problem) -> None:
    """CreatePlan sends progress that only grows, and the plan, hashed, in the last message."""
    *progress, last = await create(stub, message)
    assert last.WhichOneof("event") == "plan"
    assert {response.WhichOneof("event") for response in progress} == {"progress"}
    done = [response.progress.candidates_done for response in progress]
    assert done == sorted(done)
    assert progress[-1].progress.best_objective_s > 0
    plan = from_message(Plan, last.plan)
    assert plan.hash == plan.with_hash().hash
    assert plan.strategy == "llm-pq"
    assert plan.estimate.solve_s > 0


async def test_evaluates_its_own_plan(stub: Any, message: Problem) -> None:
    """EvaluatePlan fills in the same figures and hash as CreatePlan, from the decisions alone."""
    plan = (await create(stub, message))[-1].plan
    bare = type(plan)()
    bare.CopyFrom(plan)
    bare.hash = ""
    for stage in bare.stages:
        stage.ClearField("memory")
        stage.ClearField("prefill_ms")
    request = planner_service_pb2.EvaluatePlanRequest(problem=message, plan=bare)
    assert (await stub.EvaluatePlan(request, timeout=10)).plan == plan


async def test_compares_strategies_in_order(stub: Any, message: Problem) -> None:
    """ComparePlans answers in the order asked for; none named means all."""
    request = planner_service_pb2.ComparePlansRequest(problem=message, strategies=["uniform", "llm-pq"])
    results = (await stub.ComparePlans(request, timeout=30)).results
    assert [result.strategy for result in results] == ["uniform", "llm-pq"]
    assert [result.plan.strategy for result in results] == ["uniform", "llm-pq"]
    everything = await stub.ComparePlans(planner_service_pb2.ComparePlansRequest(problem=message), timeout=30)
    assert [result.strategy for result in everything.results] == [*STRATEGIES, *OFFLOADING_STRATEGIES]
    for result in everything.results:
        if result.HasField("plan"):
            assert result.simulation.throughput_tokens_per_s > 0
            assert len(result.simulation.busy_ratios) == len(result.plan.stages)
        else:
            assert result.reason == "NOT_AVAILABLE"


async def test_a_scenario_becomes_a_problem_that_can_be_explained_and_traded(stub: Any) -> None:
    """Names become a problem; ExplainPlan and TradeQuality answer for it as for any other."""
    request = planner_service_pb2.ResolveScenarioRequest(cluster_name="paper:1", lengths="sharegpt", num_requests=8)
    problem = (await stub.ResolveScenario(request, timeout=30)).problem
    assert problem.model == "opt-13b"
    assert [device.device_id for device in problem.devices] == ["V100-32-0"]
    assert sum(bucket.count for bucket in problem.workload) == 8
    explained = await stub.ExplainPlan(planner_service_pb2.ExplainPlanRequest(problem=problem), timeout=60)
    assert [stage.device_id for stage in explained.stages] == ["V100-32-0"]
    assert explained.counterfactuals
    traded = await stub.TradeQuality(planner_service_pb2.TradeQualityRequest(problem=problem, num_points=3), timeout=60)
    losses = [point.plan.estimate.quality_loss for point in traded.points]
    assert losses == sorted(losses)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"cluster_name": "paper:12", "model_name": "opt-13b"}, grpc.StatusCode.NOT_FOUND),
        ({"cluster_name": "paper:1", "model_name": "opt-14b"}, grpc.StatusCode.NOT_FOUND),
        ({"cluster_name": "paper:1", "kernels": "fast"}, grpc.StatusCode.NOT_FOUND),
        ({"cluster_name": "paper:1", "lengths": "mine", "num_requests": 3}, grpc.StatusCode.NOT_FOUND),
        ({"cluster_name": "paper:1", "lengths": "azure"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"cluster_document": "hosts: 3"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"cluster_name": "paper:1", "catalog_documents": ["models: ["]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_scenario_with_wrong_names_is_refused(stub: Any, fields: Any, code: grpc.StatusCode) -> None:
    """Unknown names are NOT_FOUND; malformed documents and missing names INVALID_ARGUMENT."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ResolveScenario(planner_service_pb2.ResolveScenarioRequest(**fields), timeout=30)
    assert caught.value.code() is code


def _first_point(message: Problem) -> Any:
    return message.devices[0].points[0]


BAD_INPUT: dict[str, tuple[Callable[[Problem], object], str]] = {
    "no devices": (lambda m: m.ClearField("devices"), "problem.devices"),
    "no points": (lambda m: m.devices[1].ClearField("points"), "problem.devices[1].points"),
    "same device twice": (lambda m: m.devices[1].CopyFrom(m.devices[0]), "problem.devices"),
    "no budget": (
        lambda m: m.devices[0].description.ClearField("memory_budget_bytes"),
        "problem.devices[0].description.memory_budget_bytes",
    ),
    "empty workload": (lambda m: m.ClearField("workload"), "problem.workload"),
    "zero requests": (lambda m: setattr(m.workload[0], "count", 0), "problem.workload[0].count"),
    "empty prompts": (lambda m: setattr(m.workload[0], "prompt_tokens", 0), "problem.workload[0].prompt_tokens"),
    "beyond the context": (lambda m: setattr(m.workload[0], "prompt_tokens", 500), "problem.workload[0]"),
    "too many requests": (lambda m: setattr(m.workload[0], "count", 2**32 - 1), "problem.workload[0].count"),
    "no layers": (lambda m: setattr(m.shape, "num_layers", 0), "problem.shape.num_layers"),
    "unknown family": (lambda m: setattr(m.shape, "family", "mamba"), "problem.shape.family"),
    "no shape": (lambda m: m.ClearField("shape"), "shape"),
    "unknown scheme": (lambda m: m.options.allowed_schemes.append("w5"), "problem.options.allowed_schemes"),
    "schemes for some layers": (lambda m: m.options.layer_schemes.append("w4"), "problem.options.layer_schemes"),
    "groups that do not divide": (
        lambda m: setattr(m.options, "layers_per_group", 4),
        "problem.options.layers_per_group",
    ),
    "unknown strategy": (lambda m: setattr(m.options, "strategy", "magic"), "problem.options.strategy"),
    "odd group size": (lambda m: setattr(m.options, "group_size", 48), "problem.options.group_size"),
    "NaN weight": (lambda m: setattr(m.options, "quality_weight", float("nan")), "problem.options.quality_weight"),
    "negative budget": (lambda m: setattr(m.options, "quality_budget", -1.0), "problem.options.quality_budget"),
    "infinite time": (lambda m: setattr(m.options, "time_limit_s", float("inf")), "problem.options.time_limit_s"),
    "micro-batch beyond a frame": (
        lambda m: setattr(m.options, "decode_micro_batch", 10**6),
        "problem.options.decode_micro_batch",
    ),
    "instant point": (
        lambda m: setattr(_first_point(m), "duration_ns", 0),
        "problem.devices[0].points[0].duration_ns",
    ),
    "absurd point": (
        lambda m: setattr(_first_point(m), "duration_ns", 2**63),
        "problem.devices[0].points[0].duration_ns",
    ),
    "point of no part": (lambda m: _first_point(m).ClearField("part"), "devices.0.points.0.part"),
    "negative omega": (
        lambda m: m.sensitivities.add(layer=0, scheme="w4", omega=-1),
        "problem.sensitivities[0].omega",
    ),
    "omega of no layer": (lambda m: m.sensitivities.add(layer=6, scheme="w4"), "problem.sensitivities[0].layer"),
    "omegas missing": (lambda m: m.sensitivities.add(layer=0, scheme="w4", omega=1), "problem.sensitivities"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
async def test_bad_input_is_refused_by_field(stub: Any, message: Problem, case: str) -> None:
    """Malformed problems end the call with INVALID_ARGUMENT, and BadRequest names the field."""
    spoil, field = BAD_INPUT[case]
    spoil(message)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(stub, message)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violation = _detail(caught.value, error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == field
    assert violation.description


async def test_too_little_memory_names_the_device(stub: Any, message: Problem) -> None:
    """A model that fits nowhere ends the call with FAILED_PRECONDITION, device and bytes."""
    for profile in message.devices:
        profile.description.memory_budget_bytes = 150_000
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create(stub, message)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert _detail(caught.value, error_details_pb2.PreconditionFailure).violations[0].subject in {"fast", "slow"}
    info = _detail(caught.value, error_details_pb2.ErrorInfo)
    assert info.reason == "DOES_NOT_FIT"
    assert int(info.metadata["short_bytes"]) > 0


class _EndlessPlanner(Planner):
    """Plans until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.has_ended = threading.Event()

    def create(self, problem: PlanningProblem, on_progress: OnProgress = lambda _: None) -> Plan:
        del problem
        try:
            while True:
                on_progress(Progress(0, 1, 1.0))
        finally:
            self.has_ended.set()


async def test_cancelling_stops_the_search_and_health_answers_meanwhile(message: Problem) -> None:
    """While a search runs, health checks are answered; when its caller leaves, it ends."""
    planner = _EndlessPlanner()
    async for stub in _served(planner):
        call = stub.CreatePlan(planner_service_pb2.CreatePlanRequest(problem=message))
        assert (await call.read()).WhichOneof("event") == "progress"
        status = await stub.health.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME), timeout=10)  # type: ignore[attr-defined]
        assert status.status == health_pb2.HealthCheckResponse.SERVING
        assert not planner.has_ended.is_set()
        call.cancel()
        assert await asyncio.to_thread(planner.has_ended.wait, 10)


async def test_process_serves_until_terminated(message: Problem) -> None:
    """`python -m planner_svc` says where it listens, plans, and ends with 0 at SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "planner_svc", "--listen", "127.0.0.1:0", "--time-limit", "20",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    announcement = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
    assert announcement.startswith("listening on 127.0.0.1:")
    async with open_channel(announcement.split()[-1]) as channel:
        responses = await create(planner_service_pb2_grpc.PlannerServiceStub(channel), message)
        assert responses[-1].plan.hash
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 30) == 0


def _detail(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    """The detail of a type in an error's status."""
    trailers = dict(error.trailing_metadata() or ())

    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    for packed in status.details:
        unpacked = kind()
        if packed.Unpack(unpacked):
            return unpacked
    raise AssertionError(f"no {kind.__name__} among the details")
