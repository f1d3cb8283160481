"""A stage server without a model: real gRPC, a cache of token ids, and a hash of them as the next token.

Every stage passes token ids on; the last one keeps what each slot holds and refuses frames that leave gaps in it, so a
coordinator that loses or repeats a row gets an error or another answer.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Self

import grpc

from llmpq.device import DeviceDescription, ModelPart, Phase
from llmpq.errors import DoesNotFitError, InternalError, PreconditionError
from llmpq.frames import DataType, Frame, FrameOutput, StageTiming
from llmpq.messages import to_message
from llmpq.rpc import open_channel, serving
from llmpq.rpc.data_plane import ForwardStream, add_forward_handler
from llmpq.rpc.link_probe import PROBE_DEPLOYMENT
from llmpq.v1 import coordinator_service_pb2 as coordinator_pb
from llmpq.v1 import coordinator_service_pb2_grpc, plan_pb2, stage_service_pb2_grpc
from llmpq.v1 import stage_service_pb2 as pb
from tests.support.frame_sinks import TaskSink

#: Token ids of the letters a to z in the byte-level tokenizer of `opt_bytes`; answers are made of these.
LETTERS = tuple(range(67, 93))
COMPUTE_NS = 2_000_000
LINK_LATENCY_NS = 300_000
PROCESS_BYTES, RUNTIME_BYTES = 5_000_000, 1_000_000


def next_token(tokens: Sequence[int], seed: int = 0) -> int:
    """The token that follows `tokens`."""
    return LETTERS[zlib.crc32(array("i", tokens).tobytes(), seed & 0xFFFFFFFF) % len(LETTERS)]


def score(tokens: Sequence[int], target: int) -> float:
    """The log-probability of `target` after `tokens`."""
    return -(zlib.crc32(array("i", [*tokens, target]).tobytes()) % 1000) / 128


def answer(prompt: Sequence[int], num_tokens: int, seed: int = 0) -> list[int]:
    """What a request for `num_tokens` tokens must come to, however it was scheduled."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens, seed))
    return tokens[len(prompt) :]


class FakeStage(stage_service_pb2_grpc.StageServiceServicer):
    """One stage server; serves and registers inside its block.

    Args:
        device_id: Its name.
        coordinator: host:port to register at.
        schemes: What it says that it can run.
        memory_budget_bytes: What it says that it has.
        cpu_class: What it says that its CPU is.
        cores: What it says that it is held to.
        frame_delay_s: How long a frame takes.

    Attributes:
        loads: Every LoadStage it was asked for.
        frames: Every frame that it computed.
        num_profiled: Calls of ProfileLayers.
        num_links: Calls of MeasureLink.
        is_busy: Whether it is kept busy.
        busy_error: Raised by KeepBusy, if set.
        on_profile: Called when it is profiled.
        ratings: Every MeasureSensitivity it was asked for.
        load_error: Raised by LoadStage, if set.
        profile_error: Raised by ProfileLayers, if set.
        link_error: Raised by MeasureLink, if set.
        is_silent: Whether it has stopped sending heartbeats.
    """

    def __init__(
        self,
        device_id: str,
        coordinator: str,
        *,
        schemes: tuple[str, ...] = ("w16", "w4"),
        memory_budget_bytes: int = 10**9,
        cpu_class: str = "avx2",
        cores: tuple[int, ...] = (),
        frame_delay_s: float = 0.0,
    ) -> None:
        self.device_id = device_id
        self.frame_delay_s = frame_delay_s
        self.description = DeviceDescription(
            kind="cpu",
            name="fake",
            cpu_class=cpu_class,
            num_threads=1,
            memory_total_bytes=memory_budget_bytes,
            memory_budget_bytes=memory_budget_bytes,
            schemes=schemes,
            activation_bytes=4,
        )
        self.loads: list[pb.LoadStageRequest] = []
        self.frames: list[Frame] = []
        self.num_profiled = 0
        self.num_links = 0
        self.is_busy = False
        self.busy_error: Exception | None = None
        self.on_profile: Callable[[], None] = lambda: None
        self.ratings: list[pb.MeasureSensitivityRequest] = []
        self.load_error: Exception | None = None
        self.profile_error: Exception | None = None
        self.link_error: Exception | None = None
        self.is_silent = False
        self._coordinator = coordinator
        self._cores = cores
        self._alone = asyncio.Lock()
        self._slots: dict[int, list[int]] = {}
        self._next: ForwardStream | None = None
        self._deployment = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._block = AsyncExitStack()
        self.address = (await self._block.enter_async_context(serving("127.0.0.1:0", self._add, (), drain_s=0))).address
        self._block.push_async_callback(self._deployment.aclose)
        self.register()
        self._block.callback(self.leave)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._block.aclose()

    def register(self) -> None:
        """Keeps a lease from now on."""
        self._registration = asyncio.create_task(self._keep_registered())

    def leave(self) -> None:
        """Gives up its lease, as a process that dies does; what it serves goes on."""
        self._registration.cancel()

    @property
    def num_rows(self) -> int:
        """Rows that it computed."""
        return sum(frame.num_rows for frame in self.frames)

    def starts_of(self, prompt: Sequence[int], *, among: Sequence[Frame] | None = None) -> int:
        """How often it began to compute a sequence with `prompt`, in all of its frames or some; for the first stage."""
        return sum(
            start == 0 and tokens[: len(prompt)] == list(prompt)
            for frame in (self.frames if among is None else among)
            for start, tokens in zip(frame.starts, rows_of(frame), strict=True)
        )

    async def DescribeDevice(self, request: pb.DescribeDeviceRequest, context: Any) -> pb.DescribeDeviceResponse:  # noqa: ARG002, N802
        """Says who it is."""
        return pb.DescribeDeviceResponse(
            device_id=self.device_id, description=to_message(self.description, plan_pb2.DeviceDescription)
        )

    async def ProfileLayers(self, request: pb.ProfileLayersRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        """Every layer takes as long."""
        if request.only_kept:
            return
        if self.profile_error:
            raise self.profile_error
        self.num_profiled += 1
        parts = [(ModelPart.LAYER, scheme) for scheme in request.schemes]
        parts += [(ModelPart.EMBEDDING, ""), (ModelPart.HEAD, "")]
        points = [(part, scheme, phase, count) for part, scheme in parts for phase in Phase for count in (1, 4)]
        async with self._alone:
            self.on_profile()
            for done, (part, scheme, phase, count) in enumerate(points, start=1):
                point = plan_pb2.LatencyPoint(
                    part=plan_pb2.ModelPart.Value(part),
                    scheme=scheme,
                    phase=plan_pb2.Phase.Value(phase),
                    num_sequences=count,
                    num_tokens=16 if phase is Phase.PREFILL else 1,
                    past_tokens=0 if phase is Phase.PREFILL else 16,
                    duration_ns=COMPUTE_NS * count,
                )
                yield pb.ProfileLayersResponse(point=point, points_done=done, points_total=len(points))

    async def KeepBusy(self, request: pb.KeepBusyRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        """Until it is cancelled."""
        if self.busy_error:
            raise self.busy_error
        if self._alone.locked():
            raise PreconditionError("It measures.", reason="STAGE_BUSY", subject=self.device_id)
        async with self._alone:
            self.is_busy = True
            try:
                yield pb.KeepBusyResponse()
                await asyncio.Event().wait()
            finally:
                self.is_busy = False

    async def MeasureSensitivity(self, request: pb.MeasureSensitivityRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        """The second layer is more sensitive than the first."""
        self.ratings.append(request)
        for layer in range(2):
            ratings = [
                plan_pb2.LayerSensitivity(layer=layer, scheme=scheme, omega=0.0 if scheme == "w16" else 8.0 + layer)
                for scheme in request.schemes
            ]
            yield pb.MeasureSensitivityResponse(sensitivities=ratings, steps_done=layer + 1, steps_total=2)

    async def LoadStage(self, request: pb.LoadStageRequest, context: Any) -> AsyncIterator[pb.LoadStageResponse]:  # noqa: ARG002, N802
        """Keeps the request and empties all slots."""
        if self.load_error:
            raise self.load_error
        await self._deployment.aclose()
        self.loads.append(request)
        self._slots = {}
        self._next = await self._deployment.enter_async_context(ForwardStream(request.next_address))
        for done in range(1, len(request.layers) + 1):
            memory = plan_pb2.StageMemory(layer_bytes=done * 1000, budget_bytes=self.description.memory_budget_bytes)
            yield pb.LoadStageResponse(layers_done=done, layers_total=len(request.layers), memory=memory)

    async def GetStage(self, request: pb.GetStageRequest, context: Any) -> pb.GetStageResponse:  # noqa: ARG002, N802
        """Says what plan is loaded, and how much the process takes."""
        plan_hash = self.loads[-1].plan_hash if self.loads else ""
        return pb.GetStageResponse(plan_hash=plan_hash, process_bytes=PROCESS_BYTES, runtime_bytes=RUNTIME_BYTES)

    async def UnloadStage(self, request: pb.UnloadStageRequest, context: Any) -> pb.UnloadStageResponse:  # noqa: ARG002, N802
        """Frees nothing."""
        return pb.UnloadStageResponse()

    async def MeasureLink(self, request: pb.MeasureLinkRequest, context: Any) -> pb.MeasureLinkResponse:  # noqa: ARG002, N802
        """Every link is the same."""
        if self.link_error:
            raise self.link_error
        self.num_links += 1
        link = plan_pb2.LinkProfile(sender_id=self.device_id, latency_ns=LINK_LATENCY_NS, bytes_per_s=10**9)
        return pb.MeasureLinkResponse(link=link)

    def _check(self, frame: Frame) -> None:
        is_loaded = bool(self.loads) and frame.deployment_id == self.loads[-1].deployment_id
        if frame.deployment_id != PROBE_DEPLOYMENT and not is_loaded:
            raise PreconditionError("Another deployment is loaded.", subject=frame.deployment_id)

    async def _compute(self, frame: Frame) -> None:
        if frame.deployment_id == PROBE_DEPLOYMENT:
            return
        await asyncio.sleep(self.frame_delay_s)
        self._check(frame)
        self.frames.append(replace(frame, payload=bytes(frame.payload)))
        is_last = self.loads[-1].stage == self.loads[-1].num_stages - 1
        result = self._results(frame) if is_last else frame
        result.timings = [*frame.timings, StageTiming(self.loads[-1].stage, 0, COMPUTE_NS)]
        assert self._next is not None
        await self._next.send(result)

    def _results(self, frame: Frame) -> Frame:
        tokens, scores = array("i"), []
        at = 0
        for index, (slot, start, rows) in enumerate(zip(frame.slots, frame.starts, rows_of(frame), strict=True)):
            if start > len(self._slots.get(slot, ())):
                raise InternalError(f"Slot {slot} holds fewer than {start} tokens.")
            held = self._slots[slot] = [*self._slots.get(slot, [])[:start], *rows]
            if frame.output is FrameOutput.TOKENS and frame.emits[index]:
                seed = frame.sampling[index].seed if frame.sampling else 0
                tokens.append(next_token(held, seed))
            if frame.output is FrameOutput.SCORES:
                targets = frame.targets[at : at + len(rows)]
                scores += [score(held[: start + row + 1], t) for row, t in enumerate(targets) if t >= 0]
            at += len(rows)
        payload = struct.pack(f"<{len(scores)}f", *scores) if scores else tokens.tobytes()
        data_type = DataType.FLOAT32 if scores else DataType.INT32
        return replace(frame, data_type=data_type, dimensions=(len(scores) or len(tokens),), payload=payload)

    def _add(self, server: grpc.aio.Server) -> None:
        stage_service_pb2_grpc.add_StageServiceServicer_to_server(self, server)
        add_forward_handler(server, lambda: TaskSink(self._check, self._compute))

    async def _keep_registered(self) -> None:
        while True:
            try:
                await self._hold_lease()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.sleep(0.05)

    async def _hold_lease(self) -> None:
        registration = coordinator_pb.StageRegistration(
            device_id=self.device_id,
            address=self.address,
            description=to_message(self.description, plan_pb2.DeviceDescription),
            cores=self._cores,
        )
        async with open_channel(self._coordinator) as channel:
            call = coordinator_service_pb2_grpc.CoordinatorServiceStub(channel).RegisterStage(wait_for_ready=True)
            await call.write(coordinator_pb.RegisterStageRequest(registration=registration))
            while (granted := await call.read()) is not grpc.aio.EOF:
                await asyncio.sleep(granted.heartbeat_interval_s)
                if self.is_silent:
                    await asyncio.Event().wait()
                await call.write(coordinator_pb.RegisterStageRequest(heartbeat=coordinator_pb.Heartbeat()))


def rows_of(frame: Frame) -> list[list[int]]:
    """The token ids of each sequence in a frame into the first stage."""
    tokens = memoryview(frame.payload).cast("i").tolist()
    rows, at = [], 0
    for count in frame.counts:
        rows.append(tokens[at : at + count])
        at += count
    return rows


def too_large(device_id: str) -> DoesNotFitError:
    """What a stage says that cannot hold its slice."""
    return DoesNotFitError.on_device(device_id, "The slice", 1000)
