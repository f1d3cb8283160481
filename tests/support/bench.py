"""A coordinator over real gRPC between a fake planner and fake stages."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fake_planner import FakePlanner
from fake_stage import FakeStage

from coordinator.config import CoordinatorConfig
from coordinator.server import coordinating
from llmpq import Batch, Client, Result

LEASE_TTL_S = 0.9


@dataclass
class Bench:
    """One coordinator in this process, and what it talks to.

    Attributes:
        state: Its state directory.
        planner: Its planner.
        model: A model directory with a byte-level tokenizer.
        client: Its client.
        address: Where it listens.
        stages: The stages, by device_id.
    """

    state: Path
    planner: FakePlanner
    model: str
    client: Client = field(init=False)
    address: str = field(init=False)
    stages: dict[str, FakeStage] = field(default_factory=dict)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator["Bench"]:
        """Runs the coordinator inside the block."""
        settings = {"listen": "127.0.0.1:0", "lease_ttl_s": LEASE_TTL_S} | settings
        config = CoordinatorConfig(planner=self.planner.address, state=self.state, **settings)
        async with self.stack, coordinating(config) as (self.address, runner), Client(self.address) as self.client:
            queue = asyncio.create_task(runner.run())
            try:
                yield self
            finally:
                await self.stack.aclose()
                queue.cancel()
                await asyncio.gather(queue, return_exceptions=True)

    async def add_stage(self, device_id: str, **settings: Any) -> FakeStage:
        """Starts a stage and waits until it is a member."""
        stage = await self.stack.enter_async_context(FakeStage(device_id, self.address, **settings))
        self.stages[device_id] = stage
        await self.until(lambda cluster: device_id in cluster)
        return stage

    async def until(self, condition: Callable[[set[str]], bool]) -> None:
        """Waits until the members' names are so."""
        while not condition({stage.device_id for stage in (await self.client.cluster()).stages}):  # noqa: ASYNC110 another process's state
            await asyncio.sleep(0.02)

    async def run(self, lines: list[str | Mapping[str, Any]], **options: Any) -> tuple[Batch, list[Result]]:
        """Runs a batch to its end."""
        batch = await self.client.submit(lines, model=self.model, **options)
        results = [result async for result in self.client.results(batch.batch_id)]
        return await self.client.get(batch.batch_id), results


Check = Callable[[Batch], bool]


async def watched(client: Client, batch_id: str, check: Check) -> Batch:
    """The first snapshot of a batch of which `check` is true."""
    async for batch in client.watch(batch_id):
        if check(batch):
            return batch
    raise AssertionError("the batch ended before")
