"""What a mesh's processes take of memory: whether it grows from batch to batch, and whether a stage keeps to its plan.

    python benchmarks/endurance.py --model build/models/SmolLM2-135M-Instruct.Q4_1.gguf

First tiny batches on one local mesh, 2 requests of 8 tokens and 4 new ones: resident bytes of every process after the
first 100 of them and after all. Then one batch of 32 x 128 -> 64 tokens on a mesh of its own: the most that each stage
took beyond its runtime (interpreter, libraries and what opening the model takes), beside the memory of its plan.
"""

import argparse
import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from llmpq.batch import Batch
from llmpq.bench.mesh_system import MeshSystem
from llmpq.bench.workload import equal_lengths
from llmpq.client import Client
from llmpq.cluster_file import local_cluster
from llmpq.local_mesh import local_mesh
from llmpq.rpc import open_channel
from llmpq.v1 import stage_service_pb2 as stage_pb
from llmpq.v1.stage_service_pb2_grpc import StageServiceStub

SCHEME = "w8a8"
#: Token ids that prompts are cut from: what they mean does not matter here.
TOKENS = range(1000, 40_000)
TINY = equal_lengths(TOKENS, num_requests=2, prompt_tokens=8, new_tokens=4)
LARGE = equal_lengths(TOKENS, num_requests=32, prompt_tokens=128, new_tokens=64)
#: Batches after which a process has everything that it needs for the next.
NUM_SETTLING = 100


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--stages", type=int, default=2)
    settings = parser.parse_args()
    if settings.batches > NUM_SETTLING:
        asyncio.run(show_growth(settings.model, settings.stages, settings.batches))
    asyncio.run(show_peaks(settings.model, settings.stages))


async def show_growth(model: str, num_stages: int, num_batches: int) -> None:
    """Resident bytes of each process after some batches and after all."""
    async with started(model, num_stages) as (_, system):
        for _ in range(NUM_SETTLING):
            await system.run(TINY)
        settled = resident_bytes()
        for _ in range(num_batches - NUM_SETTLING):
            await system.run(TINY)
        final = resident_bytes()
    print(f"| process | MB after {NUM_SETTLING} batches | MB after {num_batches} | bytes a batch |\n|---|---|---|---|")
    for name, num_bytes in final.items():
        growth = (num_bytes - settled[name]) / (num_batches - NUM_SETTLING)
        print(f"| {name} | {settled[name] / 1e6:.1f} | {num_bytes / 1e6:.1f} | {growth:,.0f} |", flush=True)


async def show_peaks(model: str, num_stages: int) -> None:
    """The most that each stage took beyond its runtime, and what its plan says."""
    async with started(model, num_stages) as (_, system):  # so that no stage measures its device in the next
        await system.run(LARGE)
    async with started(model, num_stages) as (client, system):
        await system.run(LARGE)
        [batch_id] = [batch.batch_id async for batch in client.list()]
        addresses = {stage.device_id: stage.address for stage in (await client.cluster()).stages}
        await print_peaks(await client.get(batch_id), addresses)


async def print_peaks(batch: Batch, addresses: dict[str, str]) -> None:
    """One row for each stage of the plan."""
    assert batch.plan is not None  # noqa: S101 it has run
    pids = stage_pids()
    print("| stage | layers | ends | KV cache | temporaries | plan MB | peak MB | peak / plan |\n" + "|---" * 8 + "|")
    for stage in batch.plan.stages:
        memory, name = stage.memory, stage.device_id
        parts = (memory.layer_bytes, memory.embedding_head_bytes, memory.kv_bytes, memory.workspace_bytes)
        async with open_channel(addresses[name]) as channel:
            runtime_bytes = (await StageServiceStub(channel).GetStage(stage_pb.GetStageRequest())).runtime_bytes
        peak_bytes = peak_anonymous_bytes(pids[name]) - runtime_bytes
        figures = " | ".join(f"{num_bytes / 1e6:.1f}" for num_bytes in (*parts, memory.used_bytes, peak_bytes))
        print(f"| {name} | {figures} | {peak_bytes / memory.used_bytes:.3f} |", flush=True)


@asynccontextmanager
async def started(model: str, num_stages: int) -> AsyncIterator[tuple[Client, MeshSystem]]:
    """A local mesh, inside the block."""
    cluster = local_cluster(num_stages)
    num_cores = len({core for stage in cluster.stages for core in stage.cores})
    async with local_mesh(cluster) as coordinator, Client(coordinator) as client:
        yield client, MeshSystem(client, model, SCHEME, num_stages, num_cores, has_int8_kv_cache=False)


def resident_bytes() -> dict[str, int]:
    """Of the processes that this one has started, by name."""
    stages = {pid: name for name, pid in stage_pids().items()}
    children = psutil.Process().children()
    return {stages.get(child.pid) or child.cmdline()[2]: child.memory_info().rss for child in children}


def stage_pids() -> dict[str, int]:
    """The stage servers that this process has started, by name."""
    commands = {child.pid: child.cmdline() for child in psutil.Process().children()}
    return {words[words.index("--name") + 1]: pid for pid, words in commands.items() if "--name" in words}


def peak_anonymous_bytes(pid: int) -> int:
    """The most resident bytes so far, without those that files back: these hardly change once a process has started."""
    status = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
    return (int(status["VmHWM"]) - int(status["RssFile"]) - int(status["RssShmem"])) * 1024


if __name__ == "__main__":
    main()
