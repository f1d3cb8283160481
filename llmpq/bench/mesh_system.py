"""This mesh, as one of the systems: stage servers on this host that share its cores."""

import json
import math
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmpq.batch import Batch
from llmpq.bench.machine import package_version
from llmpq.bench.system import Run
from llmpq.bench.workload import Workload
from llmpq.client import Client
from llmpq.cluster_file import local_cluster
from llmpq.errors import InternalError
from llmpq.local_mesh import local_mesh
from llmpq.plan import PlanOptions
from llmpq.trace import FrameTrace


class MeshSystem:
    """A local mesh with all layers at one scheme; make it by `started()`.

    Args:
        client: Of its coordinator.
        model: Path of the model.
        scheme: Of every layer.
        num_stages: Stage servers.
        num_cores: Cores that they share.
        has_int8_kv_cache: Keys and values are cached as int8.
    """

    def __init__(
        self, client: Client, model: str, scheme: str, num_stages: int, num_cores: int, *, has_int8_kv_cache: bool
    ) -> None:
        self.name = f"llmpq-{scheme}-{'int8kv-' * has_int8_kv_cache}{num_stages}"
        cache = ", keys and values in int8" * has_int8_kv_cache
        self.settings = f"{scheme}{cache}, {num_stages} stage server(s) of {num_cores // num_stages} core(s), gRPC"
        self.version = package_version("llmpq")
        self._client = client
        self._model = model
        self._options = PlanOptions(
            allowed_schemes=(scheme,), use_all_devices=True, has_int8_kv_cache=has_int8_kv_cache
        )

    @classmethod
    @asynccontextmanager
    async def started(
        cls, model: str, scheme: str, num_stages: int, *, has_int8_kv_cache: bool, num_systems: int
    ) -> AsyncIterator["MeshSystem"]:
        """Runs planner, coordinator and stage servers inside the block; so many systems hold the model at a time."""
        with tempfile.TemporaryDirectory(prefix="llmpq-bench-") as state:
            cluster = replace(local_cluster(num_stages, num_systems=num_systems), state=Path(state))
            num_cores = len({core for stage in cluster.stages for core in stage.cores})
            async with local_mesh(cluster) as coordinator, Client(coordinator) as client:
                yield cls(client, model, scheme, num_stages, num_cores, has_int8_kv_cache=has_int8_kv_cache)

    async def run(self, workload: Workload) -> Run:
        """See `System`. The wall time leaves out planning and loading, as it does for every system."""
        requests = [
            {"prompt": prompt, "max_tokens": limit}
            for prompt, limit in zip(workload.prompts, workload.max_tokens, strict=True)
        ]
        started = time.monotonic()
        batch = await self._batch(requests, ignore_stop=not workload.stops)
        job_s = time.monotonic() - started
        return Run(batch.running_s, batch.generated_tokens, _steps(await self._client.trace(batch.batch_id)), job_s)

    async def score(self, windows: Sequence[Sequence[int]]) -> float:
        """See `System`."""
        requests = [{"prompt": window, "echo": True, "logprobs": 0, "max_tokens": 0} for window in windows]
        batch = await self._batch(requests, ignore_stop=True)
        results = [result async for result in self._client.results(batch.batch_id)]
        choices = [json.loads(result.json)["response"]["body"]["choices"][0] for result in results]
        return math.fsum(value for choice in choices for value in choice["logprobs"]["token_logprobs"][1:])

    async def _batch(self, requests: Sequence[dict[str, Any]], *, ignore_stop: bool) -> Batch:
        lines = [
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/completions",
                "body": request | {"temperature": 0, "prompt": list(request["prompt"])},
            }
            for number, request in enumerate(requests)
        ]
        batch = await self._client.submit(lines, model=self._model, plan_options=self._options, ignore_stop=ignore_stop)
        async for latest in self._client.watch(batch.batch_id):
            batch = latest
        if batch.requests_completed != len(requests):
            failed = [result.json async for result in self._client.results(batch.batch_id) if result.is_error]
            raise InternalError(f"{self.name}: {batch.status_message} {failed[0] if failed else ''}", subject=self.name)
        return batch


def _steps(frames: Sequence[FrameTrace]) -> tuple[tuple[float, int], ...]:
    """When each frame came back, in seconds since the first one was sent, and how many tokens it brought."""
    begun = min(frame.sent_unix_ns for frame in frames)
    return tuple(((frame.received_unix_ns - begun) / 1e9, frame.num_results) for frame in frames)
