"""A planner that splits layers evenly and takes the micro-batch sizes from the options."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Self

import grpc

from llmpq.errors import PreconditionError
from llmpq.messages import from_message, to_message
from llmpq.plan import LayerPrecision, Plan, PlanningProblem, StageMemory, StagePlan
from llmpq.rpc import serving
from llmpq.v1 import plan_pb2, planner_service_pb2_grpc
from llmpq.v1 import planner_service_pb2 as pb

#: What it predicts that the layers of any stage take.
LAYER_BYTES = 3_000_000


class FakePlanner(planner_service_pb2_grpc.PlannerServiceServicer):
    """PlannerService.CreatePlan; serves inside its block.

    Attributes:
        problems: Every problem it was asked.
        evaluated: Every plan it was asked to evaluate.
        min_devices: With fewer there is no feasible plan.
        max_prefill_tokens: Of its plans.
        infeasible_strategy: A strategy that finds no plan.
    """

    def __init__(self) -> None:
        self.problems: list[PlanningProblem] = []
        self.evaluated: list[Plan] = []
        self.min_devices = 1
        self.max_prefill_tokens = 32
        self.infeasible_strategy = "uniform"

    async def __aenter__(self) -> Self:
        self._block = AsyncExitStack()
        self.address = (await self._block.enter_async_context(serving("127.0.0.1:0", self._add, (), drain_s=0))).address
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._block.aclose()

    async def CreatePlan(self, request: pb.CreatePlanRequest, context: Any) -> AsyncIterator[pb.CreatePlanResponse]:  # noqa: ARG002, N802
        """Splits the layers evenly."""
        problem = from_message(PlanningProblem, request.problem)
        self.problems.append(problem)
        yield pb.CreatePlanResponse(progress=pb.PlanProgress(candidates_done=1, candidates_total=2))
        if len(problem.devices) < self.min_devices or problem.options.strategy == self.infeasible_strategy:
            raise PreconditionError("No plan fits the devices.", reason="INFEASIBLE", subject="devices")
        yield pb.CreatePlanResponse(plan=to_message(self._plan(problem), plan_pb2.Plan))

    async def EvaluatePlan(self, request: pb.EvaluatePlanRequest, context: Any) -> pb.EvaluatePlanResponse:  # noqa: ARG002, N802
        """Predicts the same of every stage."""
        plan = from_message(Plan, request.plan)
        self.evaluated.append(plan)
        memory = StageMemory(layer_bytes=LAYER_BYTES)
        stages = tuple(replace(stage, memory=memory, prefill_ms=4.0, decode_ms=1.0) for stage in plan.stages)
        return pb.EvaluatePlanResponse(plan=to_message(replace(plan, stages=stages), plan_pb2.Plan))

    def _plan(self, problem: PlanningProblem) -> Plan:
        devices = problem.devices[: problem.shape.num_layers]
        cuts = [problem.shape.num_layers * number // len(devices) for number in range(len(devices) + 1)]
        scheme = (problem.options.allowed_schemes or ("w16",))[0]
        return Plan(
            model=problem.model,
            strategy=problem.options.strategy or "llm-pq",
            stages=tuple(
                StagePlan(device.device_id, first, (LayerPrecision(scheme),) * (end - first), prefill_ms=5, decode_ms=3)
                for device, first, end in zip(devices, cuts[:-1], cuts[1:], strict=True)
            ),
            prefill_micro_batch=problem.options.prefill_micro_batch or 2,
            decode_micro_batch=problem.options.decode_micro_batch or 3,
            num_lanes=problem.options.num_lanes or 2,
            max_sequence_tokens=max(bucket.prompt_tokens + bucket.output_tokens for bucket in problem.workload),
            max_prefill_tokens=self.max_prefill_tokens,
        ).with_hash()

    def _add(self, server: grpc.aio.Server) -> None:
        planner_service_pb2_grpc.add_PlannerServiceServicer_to_server(self, server)
