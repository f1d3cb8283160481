"""The Python client for code without an event loop."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self, TypeVar

from llmpq.batch import Batch, Cluster, PreviewedPlan, Result
from llmpq.client import Client
from llmpq.device import DeviceProfile
from llmpq.fidelity import FidelityResult
from llmpq.plan import LayerSensitivity, PlanningProblem
from llmpq.trace import FrameTrace

T = TypeVar("T")


class SyncClient:
    """`Client` with methods that block; see there for each of them. Use it from one thread.

    with SyncClient("localhost:50051") as client:
        batch = client.submit(Path("prompts.jsonl"))
        for result in client.results(batch.batch_id):
            print(result.json)
    """

    def __init__(self, coordinator: str, **options: Any) -> None:
        self._client = Client(coordinator, **options)

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        self._runner.run(self._client.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.__aexit__())
        self._runner.close()

    def submit(self, *args: Any, **kwargs: Any) -> Batch:
        """See `Client.submit`."""
        return self._runner.run(self._client.submit(*args, **kwargs))

    def get(self, batch_id: str) -> Batch:
        """See `Client.get`."""
        return self._runner.run(self._client.get(batch_id))

    def list(self) -> Iterator[Batch]:
        """See `Client.list`."""
        return self._iterate(self._client.list())

    def watch(self, batch_id: str) -> Iterator[Batch]:
        """See `Client.watch`."""
        return self._iterate(self._client.watch(batch_id))

    def results(self, batch_id: str, *, after: int = 0, follow: bool = True) -> Iterator[Result]:
        """See `Client.results`."""
        return self._iterate(self._client.results(batch_id, after=after, follow=follow))

    def cancel(self, batch_id: str) -> Batch:
        """See `Client.cancel`."""
        return self._runner.run(self._client.cancel(batch_id))

    def cluster(self) -> Cluster:
        """See `Client.cluster`."""
        return self._runner.run(self._client.cluster())

    def trace(self, batch_id: str) -> tuple[FrameTrace, ...]:
        """See `Client.trace`."""
        return self._runner.run(self._client.trace(batch_id))

    def planning_problem(self, *args: Any, **kwargs: Any) -> PlanningProblem:
        """See `Client.planning_problem`."""
        return self._runner.run(self._client.planning_problem(*args, **kwargs))

    def preview_plan(self, *args: Any, **kwargs: Any) -> tuple[PreviewedPlan, ...]:
        """See `Client.preview_plan`."""
        return self._runner.run(self._client.preview_plan(*args, **kwargs))

    def rate_layers(self, *args: Any, **kwargs: Any) -> tuple[LayerSensitivity, ...]:
        """See `Client.rate_layers`."""
        return self._runner.run(self._client.rate_layers(*args, **kwargs))

    def profile_devices(self, *args: Any, **kwargs: Any) -> tuple[DeviceProfile, ...]:
        """See `Client.profile_devices`."""
        return self._runner.run(self._client.profile_devices(*args, **kwargs))

    def measure_fidelity(self, *args: Any, **kwargs: Any) -> Iterator[FidelityResult]:
        """See `Client.measure_fidelity`."""
        return self._iterate(self._client.measure_fidelity(*args, **kwargs))

    def _iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> T:
            return await anext(items)

        while True:
            try:
                yield self._runner.run(following())
            except StopAsyncIteration:
                return
