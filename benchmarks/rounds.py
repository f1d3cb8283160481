"""How much of a decode round is explained by what its stages compute.

    python benchmarks/rounds.py --model build/models/SmolLM2-135M-Instruct.Q4_1.gguf

One batch after another on a local mesh of stages of one core each, w8a8 with an int8 cache. Of the rounds in which all
lanes are full: the medians of the round and of what each stage computes, and the part of the round that is not
max(lanes * slowest stage, all stages), the closed loop of the planner. A way is what a frame takes from stage to stage
and back to the coordinator, as the quicker quarter of them have it: a busy stage is late to see the others. Carrying is
the CPU time of all threads of coordinator and stages that do not compute, of all the time of the cores while decoding:
serialization, sockets, scheduling and results.
"""

import argparse
import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil

from llmpq.bench.workload import Workload, equal_lengths
from llmpq.client import Client
from llmpq.cluster_file import local_cluster
from llmpq.device import Phase
from llmpq.local_mesh import local_mesh
from llmpq.plan import PlanOptions
from llmpq.trace import FrameTrace, transits_ns

#: Token ids that prompts are cut from: what they mean does not matter here.
TOKENS = range(1000, 40_000)
#: Requests, and lanes that they are in.
LANES = ((1, 1), (32, 2), (48, 3))
PROMPT_TOKENS, NEW_TOKENS = 128, 64


@dataclass(frozen=True)
class Rounds:
    """What the full rounds of a batch came to, in milliseconds.

    Attributes:
        round_ms: From one frame of a lane to its next.
        stages_ms: What each stage computes.
        way_ms: Of a frame on all hops together.
        carrying: CPU time of what does not compute, as a share of the time of the stages' cores.
        lanes: Frames in flight.
    """

    round_ms: float
    stages_ms: tuple[float, ...]
    way_ms: float
    carrying: float
    lanes: int

    @classmethod
    def of(cls, frames: Sequence[FrameTrace], carrying: float, lanes: int, num_requests: int) -> "Rounds":
        """From the frames of a batch whose requests fill all lanes alike until they end together."""
        decode = sorted(
            (frame for frame in frames if frame.phase is Phase.DECODE), key=lambda frame: frame.sent_unix_ns
        )
        full = [frame for frame in decode if frame.num_sequences == num_requests // lanes]
        rounds = [later.sent_unix_ns - frame.sent_unix_ns for frame, later in zip(full, full[lanes:], strict=False)]
        num_stages = len(full[0].timings)
        stages = (median(frame.timings[stage].compute_ns for frame in full) / 1e6 for stage in range(num_stages))
        ways = sorted(sum(transits_ns(frame)) for frame in full)
        return cls(median(rounds) / 1e6, tuple(stages), ways[len(ways) // 4] / 1e6, carrying, lanes)

    @property
    def explained_ms(self) -> float:
        """What the closed loop takes if nothing but computing does."""
        return max(self.lanes * max(self.stages_ms), sum(self.stages_ms))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    asyncio.run(show(parser.parse_args()))


async def show(settings: argparse.Namespace) -> None:
    """One row for each number of lanes, its medians over the runs."""
    print("| requests, lanes | round ms | stages ms | not explained | a frame's way ms, of the round | carrying |")
    print("|---|---|---|---|---|---|")
    with TemporaryDirectory(prefix="llmpq-rounds-") as state:
        cluster = replace(local_cluster(settings.stages), state=Path(state))
        async with local_mesh(cluster) as coordinator, Client(coordinator) as client:
            for num_requests, lanes in LANES:
                workload = equal_lengths(TOKENS, num_requests, PROMPT_TOKENS, NEW_TOKENS)
                runs = [await run(client, settings.model, workload, lanes) for _ in range(settings.runs + 1)][1:]
                typical = sorted(runs, key=lambda each: each.explained_ms / each.round_ms)[len(runs) // 2]
                stages = " + ".join(f"{each:.2f}" for each in typical.stages_ms)
                unexplained, way = 1 - typical.explained_ms / typical.round_ms, typical.way_ms / typical.round_ms
                print(
                    f"| {num_requests}, {lanes} | {typical.round_ms:.2f} | {stages} | {unexplained:.1%} "
                    f"| {typical.way_ms:.2f}, {way:.1%} | {median(each.carrying for each in runs):.1%} |",
                    flush=True,
                )


async def run(client: Client, model: str, workload: Workload, lanes: int) -> Rounds:
    """Runs a batch and looks at its frames."""
    num_requests = len(workload.prompts)
    options = PlanOptions(
        allowed_schemes=("w8a8",),
        use_all_devices=True,
        has_int8_kv_cache=True,
        num_lanes=lanes,
        decode_micro_batch=num_requests // lanes,
    )
    frames, carrying = await frames_of(client, model, workload, options)
    return Rounds.of(frames, carrying, lanes, num_requests)


async def frames_of(
    client: Client, model: str, workload: Workload, options: PlanOptions
) -> tuple[Sequence[FrameTrace], float]:
    """The frames of a batch, and what carrying took from its first tokens on."""
    body = {"max_tokens": NEW_TOKENS, "temperature": 0}
    lines = [
        {"custom_id": str(row), "method": "POST", "url": "/v1/completions", "body": {"prompt": prompt} | body}
        for row, prompt in enumerate(workload.prompts)
    ]
    batch_id = (await client.submit(lines, model=model, plan_options=options, ignore_stop=True)).batch_id
    began: Usage | None = None
    async for batch in client.watch(batch_id):
        if began is None and batch.generated_tokens:
            began = Usage.now()
    ended = Usage.now()
    return await client.trace(batch_id), ended.carrying_since(began or ended)


@dataclass(frozen=True)
class Usage:
    """CPU time that this process's stages and coordinator have used so far.

    Attributes:
        at_s: When, by a clock that runs evenly.
        threads: Seconds by process and thread.
        stages: Processes that are stages.
    """

    at_s: float
    threads: Mapping[tuple[int, int], float]
    stages: Collection[int]

    @classmethod
    def now(cls) -> "Usage":
        """As it is."""
        commands = {process: process.cmdline() for process in psutil.Process().children()}
        stages = {process.pid for process, command in commands.items() if "stage_server" in command}
        measured = [process for process, command in commands.items() if {"stage_server", "coordinator"} & set(command)]
        threads = {
            (process.pid, thread.id): thread.user_time + thread.system_time
            for process in measured
            for thread in process.threads()
        }
        return cls(time.monotonic(), threads, stages)

    def carrying_since(self, before: "Usage") -> float:
        """The share of the stages' cores, of one each, that all but the busiest thread of each stage has used."""
        used = {key: seconds - before.threads.get(key, 0.0) for key, seconds in self.threads.items()}
        computing = sum(max(used[key] for key in used if key[0] == stage) for stage in self.stages)
        return (sum(used.values()) - computing) / ((self.at_s - before.at_s) * len(self.stages) or 1)


if __name__ == "__main__":
    main()
