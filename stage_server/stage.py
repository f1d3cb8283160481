"""The state of one stage server: what it holds, and the one thread that computes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Self, TypeVar, cast

import structlog
import torch

from llmpq.device import LatencyPoint
from llmpq.errors import InvalidInputError, PreconditionError
from llmpq.frames import Frame
from llmpq.model import ModelFiles, read_shape
from llmpq.plan import StageMemory
from llmpq.profile_request import ProfileRequest
from llmpq.rating import RatingProgress, RatingRequest
from llmpq.schemes import SCHEMES
from llmpq.stage_load import LoadProgress, StageLoad
from llmpq.stored_layers import read_stored_layers
from stage_server.busy_work import busy_work
from stage_server.deployment import Deployment
from stage_server.device import ComputeDevice
from stage_server.dry_allocation import require_memory
from stage_server.families import DecoderSpec
from stage_server.host_memory import give_back_free_memory
from stage_server.kept_profile import KeptProfile
from stage_server.kv_cache import KvCache
from stage_server.load_check import (
    check_group_size,
    check_load,
    check_stored,
    expected_memory,
    require_fit,
    weights_key,
)
from stage_server.loader import ModelLoader
from stage_server.model_slice import ModelSlice
from stage_server.process_memory import process_bytes
from stage_server.profiler import LayerProfiler
from stage_server.sample_run import EXACT
from stage_server.sensitivity import rate_layers
from stage_server.slice_loading import SliceLoad

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: After so long, whoever waits for a step of a load is told what is being done.
_TICK_S = 1.0
#: A stage is kept busy no longer, should the one who asked for it have vanished without a word.
_MAX_BUSY_S = 900.0
#: Who asks for that waits no longer for others.
_BUSY_PATIENCE_S = 2.0


@dataclass(frozen=True)
class _Held:
    """Weights that are on the device, and which."""

    key: tuple[object, ...]
    decoder: DecoderSpec
    weights: ModelSlice


class Stage:
    """Holds at most one slice and serves at most one deployment of it. Use it as an async context manager."""

    def __init__(self, device_id: str, device: ComputeDevice) -> None:
        self.device_id = device_id
        self.device = device
        self.deployment: Deployment | None = None
        self.memory = StageMemory(budget_bytes=device.description.memory_budget_bytes)
        self.is_loading = False
        self.runtime_bytes = process_bytes()
        self._held: _Held | None = None
        self._opened: tuple[tuple[str, str], ModelLoader] | None = None
        self._activity = ""
        self._deployed = AsyncExitStack()
        self._changing = asyncio.Lock()
        self._executor = ThreadPoolExecutor(1, "compute", initializer=partial(_begin_computing, device.torch_device))

    async def __aenter__(self) -> Self:
        """Nothing to prepare."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends the deployment and the compute thread."""
        await self._deployed.aclose()
        self._executor.shutdown(cancel_futures=True)

    def deployment_for(self, frame: Frame) -> Deployment:
        """The deployment that a frame names.

        Raises:
            PreconditionError: The stage holds none, or another.
        """
        if self.deployment is None:
            raise PreconditionError(
                f"Stage server {self.device_id} holds no deployment; load '{frame.deployment_id}' first.",
                reason="WRONG_DEPLOYMENT",
                subject=frame.deployment_id,
            )
        return self.deployment

    async def load(self, load: StageLoad) -> AsyncIterator[LoadProgress]:
        """Makes `load` the deployment of this stage, keeping weights that are the same.

        Raises:
            NotFoundError, InvalidInputError, PreconditionError: As StageService.LoadStage says.
        """
        async with self._changing:
            self.is_loading = True
            try:
                async for progress in self._load(load):
                    yield progress
            finally:
                self.is_loading = False

    async def unload(self) -> None:
        """Frees the slice and its cache."""
        async with self._changing:
            await self._end_deployment()
            self._release_weights()

    async def profile(self, request: ProfileRequest) -> AsyncIterator[tuple[LatencyPoint, int]]:
        """Measures this device, unless that is known from before; yields each point with the number of points in all.

        Raises:
            NotFoundError, InvalidInputError, PreconditionError: As StageService.ProfileLayers says.
        """
        async with self._analysing(request.schemes, request.group_size) as schemes:
            request = replace(request, schemes=schemes)
            kept = await asyncio.to_thread(KeptProfile, self.device, request)
            known = None if request.is_fresh else kept.load()
            if known is not None or request.only_kept:
                for point in known or ():
                    yield point, len(known or ())
                return
            loader = await self._on_thread(self._open, request.model)
            profiler = LayerProfiler(loader, self.device, request)
            points: list[LatencyPoint] = []
            async for point in self._iterate(profiler.points()):
                points.append(point)
                yield point, profiler.num_points
            kept.save(points)
            give_back_free_memory()

    async def keep_busy(self, model: str) -> AsyncIterator[int]:
        """Computes until nobody wants more; yields now and then, the first time when it is at work.

        Raises:
            NotFoundError, InvalidInputError, PreconditionError: As StageService.KeepBusy says.
        """
        with suppress(TimeoutError):  # a call before this one may just be ending
            async with asyncio.timeout(_BUSY_PATIENCE_S), self._changing:
                pass
        if self._changing.locked():  # whoever holds it may wait for this very call to end
            raise self._is_busy_error()
        async with self._analysing((EXACT.scheme,), EXACT.group_size):
            ends_at = time.monotonic() + _MAX_BUSY_S
            loader = await self._on_thread(self._open, model)
            try:
                async for num_done in self._iterate(busy_work(loader, self.device)):
                    yield num_done
                    if time.monotonic() > ends_at:
                        break
            finally:
                give_back_free_memory()

    async def rate(self, request: RatingRequest) -> AsyncIterator[RatingProgress]:
        """Rates the layers of a model.

        Raises:
            NotFoundError, InvalidInputError, PreconditionError: As StageService.MeasureSensitivity says.
        """
        async with self._analysing(request.schemes, request.group_size) as schemes:
            loader = await self._on_thread(self._open, request.model)
            async for progress in self._iterate(rate_layers(loader, self.device, replace(request, schemes=schemes))):
                yield progress

    async def _load(self, load: StageLoad) -> AsyncIterator[LoadProgress]:
        self._require_runnable(tuple(layer.scheme for layer in load.layers))
        shape = await asyncio.to_thread(read_shape, load.model)
        check_load(load, shape)
        check_stored(load, await asyncio.to_thread(read_stored_layers, load.model))
        expected = expected_memory(load, shape, self.device.description)
        require_fit(self.device_id, load, expected)
        await self._end_deployment()
        files = await asyncio.to_thread(ModelFiles.locate, load.model)
        key = weights_key(load, files.fingerprint)
        is_new = self._held is None or self._held.key != key
        if is_new:
            self._release_weights()
            async for progress in self._load_weights(load, key):
                yield progress
        held = cast("_Held", self._held)
        cache = await self._on_thread(self._allocate_cache, load, held.decoder)
        what = f"Temporaries of stage {load.stage}"
        workspace = expected.workspace_bytes
        await self._on_thread(require_memory, self.device_id, what, workspace, self.device.torch_device)
        deployment = Deployment(
            load=load,
            decoder=held.decoder,
            weights=held.weights,
            cache=cache,
            device=self.device,
            executor=self._executor,
        )
        if is_new:
            await self._on_thread(deployment.warm_up)
        self.memory = replace(
            self.memory,
            layer_bytes=held.weights.layer_bytes,
            embedding_head_bytes=held.weights.embedding_head_bytes,
            kv_bytes=cache.memory_bytes,
            workspace_bytes=expected.workspace_bytes,
        )
        await self._deployed.enter_async_context(deployment.running())
        self.deployment = deployment
        log.info(
            "stage.loaded", deployment_id=load.deployment_id, layers=len(load.layers), memory=self.memory.used_bytes
        )
        yield LoadProgress(len(load.layers), len(load.layers), self.memory)

    async def _load_weights(self, load: StageLoad, key: tuple[object, ...]) -> AsyncIterator[LoadProgress]:
        self._activity = "Opening the model."
        loader = await self._on_thread(self._open, load.model)
        give_back_free_memory()
        self.runtime_bytes = process_bytes()
        slice_load = SliceLoad(loader, self.device, load)
        progress = LoadProgress(0, len(load.layers))
        async for step in self._advance(slice_load.steps()):
            if step is not None:
                progress, self._activity = step, ""
            yield replace(progress, activity=self._activity)
        self._held = _Held(key, loader.spec, slice_load.weights)
        give_back_free_memory()

    def _report(self, activity: str) -> None:
        """Takes what is being done, from whichever thread does it."""
        self._activity = activity

    def _open(self, model: str) -> ModelLoader:
        """The loader of a model; kept, because opening a GGUF file again takes seconds."""
        key = (model, ModelFiles.locate(model).fingerprint)
        if self._opened is None or self._opened[0] != key:
            self._opened = None  # before the next one takes memory
            loader = ModelLoader(model, self.device.torch_device, self.device.compute_dtype, self._report)
            self._opened = key, loader
        return self._opened[1]

    def _allocate_cache(self, load: StageLoad, decoder: DecoderSpec) -> KvCache:
        return KvCache(
            num_layers=len(load.layers),
            num_slots=load.num_slots,
            num_kv_heads=decoder.num_kv_heads,
            max_tokens=load.max_sequence_tokens,
            head_dim=decoder.head_dim,
            dtype=self.device.compute_dtype,
            device=self.device.torch_device,
            is_int8=load.has_int8_kv_cache,
        )

    async def _end_deployment(self) -> None:
        self.deployment = None
        await self._deployed.aclose()
        self._deployed = AsyncExitStack()
        give_back_free_memory()

    def _release_weights(self) -> None:
        self._held = None
        give_back_free_memory()
        self.memory = StageMemory(budget_bytes=self.memory.budget_bytes)

    @asynccontextmanager
    async def _analysing(self, schemes: tuple[str, ...], group_size: int) -> AsyncIterator[tuple[str, ...]]:
        """Keeps loads away while the block measures; yields the schemes to measure, all of them if none were named."""
        chosen = schemes or self.device.description.schemes
        self._require_runnable(chosen)
        check_group_size(group_size)
        if self.deployment is not None and self.deployment.is_busy:
            raise self._is_busy_error()
        async with self._changing:
            yield chosen

    def _is_busy_error(self) -> PreconditionError:
        return PreconditionError(
            f"Stage server {self.device_id} is computing; measure when its batch has ended.",
            reason="STAGE_BUSY",
            subject=self.device_id,
        )

    def _require_runnable(self, schemes: tuple[str, ...]) -> None:
        for scheme in schemes:
            if scheme not in SCHEMES:
                raise InvalidInputError(
                    f"Scheme '{scheme}' does not exist; there are: {', '.join(SCHEMES)}.",
                    subject="scheme",
                )
            if scheme not in self.device.description.schemes:
                runnable = ", ".join(self.device.description.schemes)
                raise PreconditionError(
                    f"Device {self.device_id} cannot run scheme '{scheme}'; it can run: {runnable}.",
                    reason="SCHEME_NOT_RUNNABLE",
                    subject=self.device_id,
                )

    async def _on_thread(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    async def _iterate(self, items: Iterator[T]) -> AsyncIterator[T]:
        """Advances an iterator on the compute thread, an item at a time."""
        async for item in self._advance(items):
            if item is not None:
                yield item

    async def _advance(self, items: Iterator[T]) -> AsyncIterator[T | None]:
        """As `_iterate`, but yields None now and then while an item takes long.

        Generators are closed on the compute thread, also when nobody wants more: theirs are threads and memory.
        """
        loop = asyncio.get_running_loop()
        try:
            while True:
                advancing = loop.run_in_executor(self._executor, next, items, None)
                while not advancing.done():
                    await asyncio.wait({advancing}, timeout=_TICK_S)
                    if not advancing.done():
                        yield None
                item = advancing.result()
                if item is None:
                    return
                yield item
        finally:
            if isinstance(items, Generator):
                await self._on_thread(items.close)


def _begin_computing(device: torch.device) -> None:
    """Makes a thread ready to compute on a device."""
    torch.set_grad_enabled(False)
    if device.type == "cuda":
        torch.cuda.set_device(device)
