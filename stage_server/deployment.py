"""A loaded slice at work: frames in, computed one after another on the compute thread, results to the next stage."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import structlog

from llmpq.device import Phase
from llmpq.errors import InternalError, InvalidInputError, MeshError, PreconditionError, UnavailableError
from llmpq.frames import DataType, Frame, StageTiming
from llmpq.rpc.data_plane import ForwardStream
from llmpq.stage_load import StageLoad
from stage_server.device import ComputeDevice
from stage_server.families import DecoderSpec
from stage_server.frame_worker import FrameWorker
from stage_server.kv_cache import KvCache
from stage_server.layer_run import LayerRun
from stage_server.layout import BatchLayout
from stage_server.model_slice import ModelSlice
from stage_server.staging import Arriving, Staging
from stage_server.tensors import payload_of, raw_of, tensor_of
from stage_server.warm_up import warm_up

log = structlog.get_logger(__name__)


@dataclass
class Counters:
    """How a deployment has spent its time, in nanoseconds."""

    frames: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0
    idle_ns: int = 0


class Deployment:
    """Serves frames for one slice; run it inside `running()`.

    Args:
        load: What is held.
        decoder: The model's spec.
        weights: The loaded slice.
        cache: Its KV cache.
        device: Where they are.
        executor: The one compute thread of this process.

    Attributes:
        failure: What ended the deployment, once something has.
    """

    def __init__(
        self,
        *,
        load: StageLoad,
        decoder: DecoderSpec,
        weights: ModelSlice,
        cache: KvCache,
        device: ComputeDevice,
        executor: ThreadPoolExecutor,
    ) -> None:
        self.load = load
        self.counters = Counters()
        self._decoder = decoder
        self._weights = weights
        self._cache = cache
        self._run_of_layers = LayerRun(weights.layers, cache.layers)
        self._device = device
        self._cached_tokens = [0] * cache.num_slots
        self._staging = Staging.to(device.torch_device)
        self._worker = FrameWorker(executor, self._prepare, self._compute)
        self._computed_until_ns = time.perf_counter_ns()
        self.failure: asyncio.Future[MeshError] = asyncio.get_running_loop().create_future()

    @property
    def is_busy(self) -> bool:
        """Whether a frame is being computed or waits for it."""
        return self._worker.is_busy

    @property
    def has_room(self) -> asyncio.Event:
        """Set while further frames may be submitted."""
        return self._worker.has_room

    def warm_up(self) -> None:
        """Computes before any frame has come; call it on the compute thread.

        Raises:
            InternalError: A kernel failed.
        """
        max_rows = min(self.load.max_frame_tokens, self._cache.max_tokens)
        try:
            warm_up(self._weights, self._run_of_layers, self._decoder.hidden_size, max_rows, self._device)
        except Exception as error:
            log.exception("warm_up.failed", deployment_id=self.load.deployment_id)
            raise self._failed_to_compute(error) from error
        self._cache.clear(0)
        self._computed_until_ns = time.perf_counter_ns()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Computes and forwards frames while the block runs; afterwards whoever still sends is refused."""
        running = asyncio.create_task(self._run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            self._fail(UnavailableError("The stage's deployment has ended.", subject=self.load.deployment_id))
            # Whoever still refers to this must not keep the cache: the next plan has room for one.
            del self._cache, self._run_of_layers

    def submit(self, frame: Frame) -> None:
        """Checks a frame and queues it.

        Raises:
            PreconditionError: The frame belongs to another deployment.
            InvalidInputError: The frame contradicts what is held here.
        """
        if frame.deployment_id != self.load.deployment_id:
            raise PreconditionError(
                f"Stage {self.load.stage} holds deployment '{self.load.deployment_id}', not '{frame.deployment_id}'; "
                "load it again.",
                reason="WRONG_DEPLOYMENT",
                subject=frame.deployment_id,
            )
        self._check(frame)
        try:
            self._worker.put(frame)
        except Exception as error:  # as when there is no memory for what it brings
            self._fail(InternalError(f"Stage {self.load.stage} cannot take up frames: {type(error).__name__}."))
            raise
        for slot, start, count in zip(frame.slots, frame.starts, frame.counts, strict=True):
            self._cached_tokens[slot] = start + count

    async def _run(self) -> None:
        try:
            async with ForwardStream(self.load.next_address) as next_stage, asyncio.TaskGroup() as tasks:
                tasks.create_task(next_stage.watch())
                tasks.create_task(self._forward(next_stage))
        except* MeshError as group:
            self._fail(cast("MeshError", _first(group)))
        except* Exception as group:  # a failing kernel must reach the coordinator, not vanish in a task
            log.exception("deployment.failed", deployment_id=self.load.deployment_id)
            self._fail(self._failed_to_compute(_first(group)))

    def _failed_to_compute(self, cause: BaseException) -> InternalError:
        return InternalError(f"Stage {self.load.stage} failed to compute: {type(cause).__name__}; see its log.")

    async def _forward(self, next_stage: ForwardStream) -> None:
        while True:
            await next_stage.send(await self._worker.result())
            self._worker.sent()

    def _prepare(self, frame: Frame) -> Arriving | None:
        """Sends the payload on its way to a GPU; on a CPU it is there."""
        return self._staging.send(raw_of(frame)) if self._staging else None

    def _compute(self, frame: Frame, arriving: Arriving | None, arrived_ns: int) -> Frame:
        """On the compute thread: this stage's part of a frame."""
        started_ns, start_unix_ns = time.perf_counter_ns(), time.time_ns()
        layout = BatchLayout(
            tuple(frame.slots),
            tuple(frame.starts),
            tuple(frame.counts),
            self._device.torch_device,
        )
        inputs = tensor_of(frame, arriving.taken() if arriving else None)
        if not self.load.is_first:  # the stage before may compute in another type
            inputs = inputs.to(self._device.compute_dtype)
        output = self._weights.hidden_states(inputs, layout, self._run_of_layers)
        if self._weights.head is not None:
            output = self._weights.results(output, layout, frame)
        is_int8 = self.load.has_int8_activations and not self.load.is_last
        data_type, dimensions, payload = payload_of(output, is_int8=is_int8)
        compute_ns = time.perf_counter_ns() - started_ns
        self._count(frame.phase, arrived_ns, started_ns, compute_ns)
        timing = StageTiming(self.load.stage, started_ns - arrived_ns, compute_ns, start_unix_ns)
        return replace(
            frame,
            data_type=data_type,
            dimensions=dimensions,
            payload=payload,
            timings=[*frame.timings, timing],
        )

    def _count(self, phase: Phase, arrived_ns: int, started_ns: int, compute_ns: int) -> None:
        self.counters.frames += 1
        self.counters.idle_ns += max(arrived_ns - self._computed_until_ns, 0)
        self._computed_until_ns = started_ns + compute_ns
        if phase is Phase.PREFILL:
            self.counters.prefill_ns += compute_ns
        else:
            self.counters.decode_ns += compute_ns

    def _check(self, frame: Frame) -> None:
        def refuse(problem: str) -> InvalidInputError:
            return InvalidInputError(f"Frame {frame.frame_id}: {problem}.", subject=f"frame {frame.frame_id}")

        if max(frame.slots) >= self._cache.num_slots or len(set(frame.slots)) != len(frame.slots):
            raise refuse(f"slots must be distinct and below {self._cache.num_slots}")
        longest = max(start + count for start, count in zip(frame.starts, frame.counts, strict=True))
        if longest > self._cache.max_tokens:
            raise refuse(f"a sequence of {longest} tokens is over the {self._cache.max_tokens} of a slot")
        if any(start > self._cached_tokens[slot] for slot, start in zip(frame.slots, frame.starts, strict=True)):
            raise refuse("a sequence starts behind the tokens that its slot holds")
        if frame.num_rows > self.load.max_frame_tokens:
            raise refuse(f"{frame.num_rows} rows are over the agreed {self.load.max_frame_tokens}")
        if max(frame.targets, default=-1) >= self._decoder.vocab_size:
            raise refuse(f"a target is not below the vocabulary size {self._decoder.vocab_size}")
        expected = (frame.num_rows,) if self.load.is_first else (frame.num_rows, self._decoder.hidden_size)
        is_token_ids = frame.data_type is DataType.INT32
        if frame.dimensions != expected or is_token_ids != self.load.is_first:
            raise refuse(f"stage {self.load.stage} expects {'int32 ' if self.load.is_first else 'float '}{expected}")
        if self.load.is_first:
            token_ids = np.frombuffer(frame.payload, np.int32)  # on the event loop torch would take twice as long
            if token_ids.min() < 0 or token_ids.max() >= self._decoder.vocab_size:
                raise refuse(f"token ids must be at least 0 and below {self._decoder.vocab_size}")

    def _fail(self, error: MeshError) -> None:
        self._worker.stop()
        if not self.failure.done():
            self.failure.set_result(error)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception that is not a group."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
