"""The asynchronous Python client of a coordinator."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from grpc.aio import UnaryStreamCall

from llmpq.batch import Batch, BatchOptions, Cluster, PreviewedPlan, Result
from llmpq.device import DeviceProfile
from llmpq.errors import InvalidInputError, UnavailableError
from llmpq.fidelity import FidelityResult
from llmpq.messages import from_message, to_message
from llmpq.plan import LayerSensitivity, LengthBucket, PlanningProblem, PlanOptions
from llmpq.rpc.channel import CONTROL_DEADLINE_S, MAX_PAYLOAD_BYTES, open_channel
from llmpq.rpc.status import rpc_errors
from llmpq.trace import FrameTrace
from llmpq.v1 import coordinator_service_pb2 as pb
from llmpq.v1 import plan_pb2
from llmpq.v1.coordinator_service_pb2_grpc import CoordinatorServiceStub

M = TypeVar("M")

#: Deadline of a submission, which returns once every line is on the coordinator's disk.
SUBMIT_DEADLINE_S = 300.0
#: Pause before a broken stream is joined again.
REJOIN_DELAY_S = 0.5
#: Lines of the input are sent in messages of about this many bytes.
_CHUNK_BYTES = MAX_PAYLOAD_BYTES // 4


class Client:
    """Submits batches to a coordinator and follows them; streams survive a restart of the coordinator.

    Every method raises the errors of `llmpq.errors` that the coordinator's contract names, and `UnavailableError` if
    it cannot be reached.

        async with Client("localhost:50051") as client:
            batch = await client.submit(Path("prompts.jsonl"), model="models/SmolLM2-135M-Instruct")
            async for result in client.results(batch.batch_id):
                print(result.json)

    Args:
        coordinator: host:port of the coordinator.
        patience_s: How long a stream tries to rejoin a coordinator that does not answer.
    """

    def __init__(self, coordinator: str, *, patience_s: float = 60.0) -> None:
        self._coordinator = coordinator
        self._patience_s = patience_s

    async def __aenter__(self) -> Self:
        self._channel = open_channel(self._coordinator)
        self._stub = CoordinatorServiceStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def submit(
        self,
        requests: Path | Iterable[str | Mapping[str, Any]],
        *,
        model: str = "",
        plan_options: PlanOptions | None = None,
        default_max_tokens: int = 0,
        ignore_stop: bool = False,
        request_id: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Batch:
        """Submits requests in OpenAI's batch format; returns the batch once it is on disk.

        Args:
            requests: A JSONL file, or its lines, each as text or as the object itself.
            model: Overrides the `model` of the lines.
            plan_options: Objective and limits of the plan.
            default_max_tokens: For lines that set none; 0 is the default of the endpoint.
            ignore_stop: Generate max_tokens tokens whatever the model says, for benchmarks.
            request_id: A second submission under the same name returns the first batch. A fresh one by default, so that
                a retry after a lost connection does not run the batch twice.
            metadata: Free text to keep with the batch.

        Raises:
            InvalidInputError: No lines, a line too long to send, or options out of range.
            NotFoundError: The model is not there.
            OverloadedError: The queue is full; nothing was stored.
        """
        options = BatchOptions(
            model=model,
            request_id=request_id or uuid.uuid4().hex,
            plan_options=plan_options or PlanOptions(),
            default_max_tokens=default_max_tokens,
            ignore_stop=ignore_stop,
            metadata=metadata or {},
        )
        with rpc_errors(self._coordinator):
            call = self._stub.SubmitBatch(timeout=SUBMIT_DEADLINE_S)
            try:
                with suppress(asyncio.InvalidStateError):  # it answered before it had read all; the response says why
                    await call.write(pb.SubmitBatchRequest(options=to_message(options, pb.BatchOptions)))
                    for lines in _chunks(_lines(requests)):
                        await call.write(pb.SubmitBatchRequest(lines=lines))
                    await call.done_writing()
                response = await call
            finally:
                call.cancel()  # half a submission must not stay open; changes nothing once it is answered
        return from_message(Batch, response.batch)

    async def get(self, batch_id: str) -> Batch:
        """Returns a batch as it is now.

        Raises:
            NotFoundError: There is none of that id.
        """
        with rpc_errors(self._coordinator):
            request = pb.GetBatchRequest(batch_id=batch_id)
            response = await self._stub.GetBatch(request, timeout=CONTROL_DEADLINE_S)
        return from_message(Batch, response.batch)

    async def list(self) -> AsyncIterator[Batch]:
        """Yields all batches, newest first, without plan and stages."""
        request = pb.ListBatchesRequest()
        while True:
            with rpc_errors(self._coordinator):
                response = await self._stub.ListBatches(request, timeout=CONTROL_DEADLINE_S)
            for batch in response.batches:
                yield from_message(Batch, batch)
            if not response.next_page_token:
                return
            request = pb.ListBatchesRequest(page_token=response.next_page_token)

    async def watch(self, batch_id: str) -> AsyncIterator[Batch]:
        """Yields the batch each time something changed; the last one is in a final state.

        Raises:
            NotFoundError: There is none of that id.
        """
        request = pb.WatchBatchRequest(batch_id=batch_id)
        async for message in self._rejoining(lambda: self._stub.WatchBatch(request)):
            yield from_message(Batch, message.batch)

    async def results(self, batch_id: str, *, after: int = 0, follow: bool = True) -> AsyncIterator[Result]:
        """Yields each result exactly once, in the order in which they were finished.

        Args:
            batch_id: The batch.
            after: Sequence number of the last result that the caller has; 0 for all.
            follow: Go on until the batch is in a final state; otherwise end at the last result there is now.

        Raises:
            NotFoundError: There is no batch of that id.
        """
        last = after

        def join() -> UnaryStreamCall[pb.GetResultsRequest, pb.GetResultsResponse]:
            return self._stub.GetResults(pb.GetResultsRequest(batch_id=batch_id, after=last, follow=follow))

        async for message in self._rejoining(join):
            last = message.sequence
            yield from_message(Result, message)

    async def cancel(self, batch_id: str) -> Batch:
        """Stops a batch; requests that are finished keep their results.

        Raises:
            NotFoundError: There is no batch of that id.
        """
        with rpc_errors(self._coordinator):
            request = pb.CancelBatchRequest(batch_id=batch_id)
            response = await self._stub.CancelBatch(request, timeout=CONTROL_DEADLINE_S)
        return from_message(Batch, response.batch)

    async def trace(self, batch_id: str) -> tuple[FrameTrace, ...]:
        """What became of each frame of a batch, in the order in which they came back; see `llmpq.trace`.

        Raises:
            NotFoundError: There is no batch of that id, or its frames are no longer kept.
        """
        with rpc_errors(self._coordinator):
            call = self._stub.GetTrace(pb.GetTraceRequest(batch_id=batch_id), timeout=CONTROL_DEADLINE_S)
            return tuple([from_message(FrameTrace, frame) async for page in call for frame in page.frames])

    async def cluster(self) -> Cluster:
        """Says which stages are members, what they are and what they hold."""
        with rpc_errors(self._coordinator):
            response = await self._stub.GetCluster(pb.GetClusterRequest(), timeout=CONTROL_DEADLINE_S)
        return from_message(Cluster, response)

    async def preview_plan(
        self,
        model: str,
        workload: Sequence[LengthBucket],
        *,
        plan_options: PlanOptions | None = None,
        strategies: Sequence[str] = (),
        on_status: Callable[[str], None] | None = None,
    ) -> tuple[PreviewedPlan, ...]:
        """Plans without running; takes as long as profiling devices that have not seen the model yet.

        Args:
            model: A directory or a .gguf file, at the same path on the hosts of coordinator and stages.
            workload: The work to plan for.
            plan_options: Objective and limits.
            strategies: Strategies to compare; empty means `plan_options.strategy` alone.
            on_status: Called with a sentence on what is going on, each time it changes.

        Raises:
            PreconditionError: There are no devices.
            NotFoundError: The model is not there.
            InvalidInputError: A number, scheme or strategy that does not exist.
        """
        request = pb.PreviewPlanRequest(
            model=model,
            workload=[to_message(bucket, plan_pb2.LengthBucket) for bucket in workload],
            options=to_message(plan_options or PlanOptions(), plan_pb2.PlanOptions),
            strategies=strategies,
        )
        results: tuple[PreviewedPlan, ...] = ()
        with rpc_errors(self._coordinator):
            async for message in self._stub.PreviewPlan(request):
                if message.status_message and on_status:
                    on_status(message.status_message)
                results = tuple(from_message(PreviewedPlan, result) for result in message.results)
        return results

    async def planning_problem(
        self,
        model: str,
        workload: Sequence[LengthBucket],
        *,
        plan_options: PlanOptions | None = None,
        on_status: Callable[[str], None] | None = None,
    ) -> PlanningProblem:
        """What a planner would be asked, measured where it was not measured before; `PlannerClient` asks one for more.

        Args:
            model: A directory or a .gguf file, at the same path on the hosts of coordinator and stages.
            workload: The work to plan for.
            plan_options: Objective and limits.
            on_status: Called with a sentence on what is going on, each time it changes.

        Raises:
            PreconditionError: There are no devices.
            NotFoundError: The model is not there.
            InvalidInputError: Options that do not exist.
        """
        request = pb.GetPlanningProblemRequest(
            model=model,
            workload=[to_message(bucket, plan_pb2.LengthBucket) for bucket in workload],
            options=to_message(plan_options or PlanOptions(), plan_pb2.PlanOptions),
        )
        problem: PlanningProblem | None = None
        with rpc_errors(self._coordinator):
            async for message in self._stub.GetPlanningProblem(request):
                if message.status_message and on_status:
                    on_status(message.status_message)
                problem = from_message(PlanningProblem, message.problem) if message.HasField("problem") else None
        if problem is None:
            raise UnavailableError(f"The coordinator at {self._coordinator} ended its answer without a problem.")
        return problem

    async def rate_layers(
        self,
        model: str,
        *,
        plan_options: PlanOptions | None = None,
        on_status: Callable[[str], None] | None = None,
    ) -> tuple[LayerSensitivity, ...]:
        """Rates what each scheme would cost each layer in quality; measures what was not measured before.

        Args:
            model: A directory or a .gguf file, at the same path on the hosts of coordinator and stages.
            plan_options: Of these count `indicator`, `rounding`, `group_size`, and `allowed_schemes`: the schemes to
                rate; all that the devices can run if there are none.
            on_status: Called with a sentence on what is going on, each time it changes.

        Raises:
            PreconditionError: No device can run a scheme that is to be rated, or w4, the unit.
            NotFoundError: The model is not there.
            InvalidInputError: Options that do not exist.
        """
        options = to_message(plan_options or PlanOptions(), plan_pb2.PlanOptions)
        ratings: tuple[LayerSensitivity, ...] = ()
        with rpc_errors(self._coordinator):
            async for message in self._stub.RateLayers(pb.RateLayersRequest(model=model, options=options)):
                if message.status_message and on_status:
                    on_status(message.status_message)
                ratings = tuple(from_message(LayerSensitivity, entry) for entry in message.sensitivities)
        return ratings

    async def profile_devices(
        self,
        model: str,
        *,
        plan_options: PlanOptions | None = None,
        is_fresh: bool = False,
        on_status: Callable[[str], None] | None = None,
    ) -> tuple[DeviceProfile, ...]:
        """Profiles the devices for a model, and the links between them; measures what was not measured before.

        What is known of other schemes is returned as well.

        Args:
            model: A directory or a .gguf file, at the same path on the hosts of coordinator and stages.
            plan_options: Of these count `group_size`, `has_int8_kv_cache` and `allowed_schemes`: what to measure; all
                schemes if there are none.
            is_fresh: Measure again what was measured before.
            on_status: Called with a sentence on what is going on, each time it changes.

        Raises:
            PreconditionError: There are no devices, or one is computing.
            NotFoundError: The model is not there.
            InvalidInputError: Options that do not exist.
        """
        options = to_message(plan_options or PlanOptions(), plan_pb2.PlanOptions)
        request = pb.ProfileDevicesRequest(model=model, options=options, is_fresh=is_fresh)
        profiles: tuple[DeviceProfile, ...] = ()
        with rpc_errors(self._coordinator):
            async for message in self._stub.ProfileDevices(request):
                if message.status_message and on_status:
                    on_status(message.status_message)
                profiles = tuple(from_message(DeviceProfile, profile) for profile in message.profiles)
        return profiles

    async def measure_fidelity(
        self,
        model: str,
        num_workloads: int,
        *,
        plan_options: PlanOptions | None = None,
        seed: int = 0,
        on_status: Callable[[str], None] | None = None,
    ) -> AsyncIterator[FidelityResult]:
        """Yields predicted beside measured, for random work on each device that no profile has.

        Args:
            model: A directory or a .gguf file, at the same path on the hosts of coordinator and stages.
            num_workloads: Workloads to draw for each device.
            plan_options: As for `profile_devices`.
            seed: What is drawn depends on this alone.
            on_status: Called with a sentence on what is going on, each time it changes.

        Raises:
            PreconditionError: There are no devices, or one is computing.
            NotFoundError: The model is not there.
            InvalidInputError: A number out of range, or options that do not exist.
        """
        request = pb.MeasureFidelityRequest(
            model=model,
            options=to_message(plan_options or PlanOptions(), plan_pb2.PlanOptions),
            num_workloads=num_workloads,
            seed=seed,
        )
        with rpc_errors(self._coordinator):
            async for message in self._stub.MeasureFidelity(request):
                if message.status_message and on_status:
                    on_status(message.status_message)
                if message.HasField("result"):
                    yield from_message(FidelityResult, message.result)

    async def _rejoining(self, join: Callable[[], UnaryStreamCall[Any, M]]) -> AsyncIterator[M]:
        """Yields what the stream that `join` opens brings, opening it again while the coordinator is away."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._patience_s
        while True:
            stream = join()
            try:
                with rpc_errors(self._coordinator):
                    async for message in stream:
                        yield message
                        give_up_at = loop.time() + self._patience_s
            except UnavailableError:
                if loop.time() > give_up_at:
                    raise
            else:
                return
            finally:
                stream.cancel()
            await asyncio.sleep(REJOIN_DELAY_S)


def _lines(requests: Path | Iterable[str | Mapping[str, Any]]) -> Iterator[str]:
    if isinstance(requests, Path):
        yield from _lines_of_file(requests)
        return
    for request in requests:
        yield request if isinstance(request, str) else json.dumps(request)


def _lines_of_file(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, without the byte-order mark that some editors begin it with."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InvalidInputError(f"{path}, line {number}: not UTF-8.", subject=f"line {number}") from error


def _chunks(lines: Iterable[str]) -> Iterator[list[str]]:
    """Groups lines into messages of about `_CHUNK_BYTES` bytes."""
    chunk: list[str] = []
    chunk_bytes = 0
    for number, line in enumerate(lines, start=1):
        line_bytes = len(line.encode())
        if line_bytes > MAX_PAYLOAD_BYTES:
            message = f"Line {number} has {line_bytes:,} bytes; a line may have {MAX_PAYLOAD_BYTES:,}."
            raise InvalidInputError(message, subject=f"line {number}")
        if chunk and chunk_bytes + line_bytes > _CHUNK_BYTES:
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(line)
        chunk_bytes += line_bytes
    if chunk:
        yield chunk
