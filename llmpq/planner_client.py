"""The asynchronous Python client of a planner, for plans of clusters that need not be there."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

from llmpq.comparison import Explanation, StrategyResult, TradePoint
from llmpq.mesh_process import MeshProcess
from llmpq.messages import from_message, to_message
from llmpq.plan import PlanningProblem
from llmpq.rpc import open_channel, rpc_errors
from llmpq.scenario import Scenario
from llmpq.v1 import planner_service_pb2 as pb
from llmpq.v1.planner_service_pb2_grpc import PlannerServiceStub


class PlannerClient:
    """Asks a planner. Every method raises the errors of `llmpq.errors` that the contract names.

        async with local_planner() as address, PlannerClient(address) as planner:
            problem = await planner.resolve(Scenario(model_name="opt-30b", cluster_name="paper:3", ...))
            results = await planner.compare(problem)

    Args:
        address: host:port of the planner.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> Self:
        self._channel = open_channel(self._address)
        self._stub = PlannerServiceStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def resolve(self, scenario: Scenario) -> PlanningProblem:
        """The problem that a scenario names; `model` of the problem is the name, or empty where the shape was given.

        Raises:
            NotFoundError: Something of that name is not in the catalog.
            InvalidInputError: A document has another form, or there is no work.
        """
        with rpc_errors(self._peer):
            response = await self._stub.ResolveScenario(to_message(scenario, pb.ResolveScenarioRequest))
        return from_message(PlanningProblem, response.problem)

    async def compare(self, problem: PlanningProblem, strategies: Sequence[str] = ()) -> list[StrategyResult]:
        """What each strategy comes to; none named means all.

        Raises:
            InvalidInputError: The problem is malformed, or there is no such strategy.
        """
        request = pb.ComparePlansRequest(problem=to_message(problem, pb.PlanningProblem), strategies=strategies)
        with rpc_errors(self._peer):
            response = await self._stub.ComparePlans(request)
        return [from_message(StrategyResult, result) for result in response.results]

    async def explain(self, problem: PlanningProblem) -> Explanation:
        """The plan, what holds it back, and what would change it.

        Raises:
            InvalidInputError: The problem is malformed.
            PreconditionError: No plan fits.
        """
        request = pb.ExplainPlanRequest(problem=to_message(problem, pb.PlanningProblem))
        with rpc_errors(self._peer):
            response = await self._stub.ExplainPlan(request)
        return from_message(Explanation, response)

    async def trade_quality(self, problem: PlanningProblem, num_points: int = 0) -> list[TradePoint]:
        """Plans for a row of quality budgets, from the least loss to the highest throughput; raises as `explain`."""
        message = to_message(problem, pb.PlanningProblem)
        with rpc_errors(self._peer):
            response = await self._stub.TradeQuality(pb.TradeQualityRequest(problem=message, num_points=num_points))
        return [from_message(TradePoint, point) for point in response.points]

    @property
    def _peer(self) -> str:
        return f"planner at {self._address}"


@asynccontextmanager
async def local_planner() -> AsyncIterator[str]:
    """Runs a planner on this host inside the block; yields its address.

    Raises:
        UnavailableError: It did not start; quotes the end of its log.
    """
    process = MeshProcess("planner", "planner_svc", (), "127.0.0.1:0", lambda _name, _line: None)
    try:
        await process.start()
        yield process.address
    finally:
        await process.stop()
