"""Following a batch to its end: progress for people, results for whoever wants them."""

import asyncio
from collections.abc import Callable

from llmpq.batch import Batch, Result
from llmpq.cli.progress import BatchProgress
from llmpq.client import Client


async def collect(client: Client, batch_id: str, on_result: Callable[[Result], None]) -> Batch:
    """Shows progress and hands over each result as it comes; returns the batch in its final state."""
    with BatchProgress() as progress:
        watching = asyncio.create_task(_watch(client, batch_id, progress))
        try:
            async for result in client.results(batch_id):
                on_result(result)
            return await watching
        finally:
            watching.cancel()


async def _watch(client: Client, batch_id: str, progress: BatchProgress) -> Batch:
    async for batch in client.watch(batch_id):
        progress.show(batch)
    return batch  # there was at least one, and the last one is in a final state
