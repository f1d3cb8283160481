"""The servicer: messages in, messages out. Planning runs on worker threads, so that the event loop stays alive."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from math import isfinite
from typing import Any, TypeVar

import grpc

from llmpq.messages import from_message, to_message
from llmpq.plan import Plan, PlanningProblem
from llmpq.scenario import Scenario
from llmpq.v1 import plan_pb2, planner_service_pb2, planner_service_pb2_grpc
from planner_svc.planner import Planner
from planner_svc.scenario import resolve
from planner_svc.search import Progress

T = TypeVar("T")

SERVICE_NAME = planner_service_pb2.DESCRIPTOR.services_by_name["PlannerService"].full_name

#: Least time between two progress messages.
_PROGRESS_INTERVAL_S = 0.1


class PlannerService(planner_service_pb2_grpc.PlannerServiceServicer):
    """Serves a planner."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner

    async def CreatePlan(  # noqa: N802 named by gRPC
        self,
        request: planner_service_pb2.CreatePlanRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[planner_service_pb2.CreatePlanResponse]:
        """See the contract."""
        del context
        problem = from_message(PlanningProblem, request.problem)
        reporter = _Reporter()
        planning = asyncio.create_task(asyncio.to_thread(self._create, problem, reporter))
        planning.add_done_callback(lambda _: reporter.updates.put_nowait(None))
        try:
            while (progress := await reporter.updates.get()) is not None:
                yield planner_service_pb2.CreatePlanResponse(progress=_progress_message(progress))
            plan = to_message(await planning, plan_pb2.Plan)
            yield planner_service_pb2.CreatePlanResponse(plan=plan)
        finally:
            reporter.cancel()

    async def EvaluatePlan(  # noqa: N802 named by gRPC
        self,
        request: planner_service_pb2.EvaluatePlanRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> planner_service_pb2.EvaluatePlanResponse:
        """See the contract."""
        del context
        problem = from_message(PlanningProblem, request.problem)
        plan = await asyncio.to_thread(self._planner.evaluate, problem, from_message(Plan, request.plan))
        return planner_service_pb2.EvaluatePlanResponse(plan=to_message(plan, plan_pb2.Plan))

    async def ComparePlans(  # noqa: N802 named by gRPC
        self,
        request: planner_service_pb2.ComparePlansRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> planner_service_pb2.ComparePlansResponse:
        """See the contract."""
        del context
        problem, strategies = from_message(PlanningProblem, request.problem), tuple(request.strategies)
        results = await _until_cancelled(lambda report: self._planner.compare(problem, strategies, report))
        messages = [to_message(result, planner_service_pb2.StrategyResult) for result in results]
        return planner_service_pb2.ComparePlansResponse(results=messages)

    async def ResolveScenario(  # noqa: N802 named by gRPC
        self,
        request: planner_service_pb2.ResolveScenarioRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> planner_service_pb2.ResolveScenarioResponse:
        """See the contract."""
        del context
        problem = await asyncio.to_thread(resolve, from_message(Scenario, request))
        message = to_message(problem, planner_service_pb2.PlanningProblem)
        return planner_service_pb2.ResolveScenarioResponse(problem=message)

    async def ExplainPlan(  # noqa: N802 named by gRPC
        self,
        request: planner_service_pb2.ExplainPlanRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> planner_service_pb2.ExplainPlanResponse:
        """See the contract."""
        del context
        problem = from_message(PlanningProblem, request.problem)
        explanation = await _until_cancelled(lambda report: self._planner.explain(problem, report))
        return to_message(explanation, planner_service_pb2.ExplainPlanResponse)

    async def TradeQuality(  # noqa: N802 named by gRPC
        self,
        request: planner_service_pb2.TradeQualityRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> planner_service_pb2.TradeQualityResponse:
        """See the contract."""
        del context
        problem, num_points = from_message(PlanningProblem, request.problem), request.num_points
        points = await _until_cancelled(lambda report: self._planner.trade_quality(problem, num_points, report))
        messages = [to_message(point, planner_service_pb2.TradePoint) for point in points]
        return planner_service_pb2.TradeQualityResponse(points=messages)

    def _create(self, problem: PlanningProblem, reporter: _Reporter) -> Plan | None:
        """Runs on a worker thread; None if nobody waits for the plan any more."""
        try:
            return self._planner.create(problem, reporter)
        except _Cancelled:
            return None


async def _until_cancelled(work: Callable[[_Reporter], T]) -> T:
    """Does work on a worker thread, and ends it at its next step if the caller goes."""
    reporter = _Reporter()
    try:
        return await asyncio.to_thread(work, reporter)
    finally:
        reporter.cancel()


class _Cancelled(Exception):  # noqa: N818 not an error
    """Ends a search whose caller has gone."""


class _Reporter:
    """Brings progress from the planning thread to the event loop, and cancellation the other way."""

    def __init__(self) -> None:
        self.updates: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._is_cancelled = threading.Event()
        self._last_s = 0.0

    def cancel(self) -> None:
        """Makes the search end at its next step."""
        self._is_cancelled.set()

    def __call__(self, progress: Progress) -> None:
        if self._is_cancelled.is_set():
            raise _Cancelled
        now = time.monotonic()
        if now - self._last_s >= _PROGRESS_INTERVAL_S or progress.candidates_done == progress.candidates_total:
            self._last_s = now
            self._loop.call_soon_threadsafe(self.updates.put_nowait, progress)


def _progress_message(progress: Progress) -> planner_service_pb2.PlanProgress:
    return planner_service_pb2.PlanProgress(
        candidates_done=progress.candidates_done,
        candidates_total=progress.candidates_total,
        best_objective_s=progress.best_objective_s if isfinite(progress.best_objective_s) else 0.0,
    )
