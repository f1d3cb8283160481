"""Tokens per second and perplexity of plans by every strategy, measured on two unlike CPU stages of this machine.

    python benchmarks/compare_strategies.py all -o build/compare.json     # everything below, on an idle machine
    python benchmarks/compare_strategies.py rate -o build/compare.json    # what quantizing costs; profiles as well
    python benchmarks/compare_strategies.py run -o build/compare.json     # until all is there
    python benchmarks/compare_strategies.py perplexity -o build/compare.json
    python benchmarks/compare_strategies.py table -o build/compare.json

`run` begins nothing new after --seconds; every step goes on where it stopped. All strategies have the same stages, one
core each, and the same prompts. The older device has two thirds of the memory of the newer one, as a card of 16 GB
beside one of 24 GB, scaled to the model: 16 bits fit in no way, 8 bits only if the newer device takes more of the
layers, and an even split (`uniform`) forces 4 bits on all. So the baselines are not equally exact, and a method
that beats one of them must do so at its quality: llm-pq plans twice, under a limit on the sum of omega equal to that of
the least exact of uniform and pipeedge (`llm-pq`), and to that of the most exact (`llm-pq-exact`). Perplexities
say afterwards what the limits came to. The figures hold for this machine: carry the ratios away.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, median, median_low
from typing import Any

from llmpq import Client, PlanOptions
from llmpq.cluster_file import ClusterSpec, StageSpec
from llmpq.local_mesh import local_mesh
from llmpq.model import read_shape
from llmpq.plan import LengthBucket

ROOT = Path(__file__).parent.parent
#: CPU classes of the two stages.
CLUSTERS = {"avx512+sse4": ("avx512", "sse4"), "avx512+avx2": ("avx512", "avx2")}
#: Requests, prompt tokens, new tokens.
WORKLOADS = {"prompt-heavy": (12, 144, 8), "balanced": (12, 80, 24), "generation-heavy": (12, 24, 64)}
#: Memory of the newer and of the older stage, in MB.
BUDGETS_MB = (216, 144)
#: Each limits itself to the memory; those of llm-pq to quality as well, of the references the worst or the best.
STRATEGIES = ("uniform", "pipeedge", "het", "adabits", "llm-pq-heuristic", "llm-pq", "llm-pq-exact")
QUALITY_LIMITS = {"llm-pq-heuristic": max, "llm-pq": max, "llm-pq-exact": min}
#: Whose mean llm-pq is compared with, as in the paper.
REFERENCES = ("uniform", "pipeedge")
NUM_RUNS = 3
#: Of each search; what it does not prove by then, its gap says.
PLANNING_S = 2.0


@dataclass(frozen=True)
class Case:
    """One strategy on one cluster and workload."""

    cluster: str
    workload: str
    strategy: str

    @property
    def key(self) -> str:
        """Its name in the JSON file."""
        return f"{self.cluster} {self.workload} {self.strategy}"


def main() -> None:
    """Runs one of the steps, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=(*STEPS, "all"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default=str(ROOT / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--cases", default="", help="only those whose names contain this: `avx2 balanced`")
    parser.add_argument("--seconds", type=float, default=1200, help="`run` begins nothing new after this time")
    parser.add_argument("--tokens", type=int, default=8192, help="of WikiText-2, for perplexity")
    settings = parser.parse_args()
    document = json.loads(settings.output.read_text()) if settings.output.exists() else {"cases": {}, "perplexity": {}}
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    for step in STEPS if settings.step == "all" else (settings.step,):
        started = time.monotonic()
        STEPS[step](settings, document)
        print(f"{step}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _rate(settings: argparse.Namespace, _document: dict[str, Any]) -> None:
    async def prepare(cluster: str) -> None:
        async with local_mesh(_cluster(cluster, settings)) as address, Client(address) as client:
            await client.profile_devices(settings.model)
            await client.rate_layers(settings.model)

    for cluster in CLUSTERS:
        asyncio.run(prepare(cluster))


def _run(settings: argparse.Namespace, document: dict[str, Any]) -> None:
    deadline = time.monotonic() + settings.seconds
    for cluster in CLUSTERS:
        missing = [
            case
            for case in (Case(cluster, *rest) for rest in product(WORKLOADS, STRATEGIES))
            if case.key not in document["cases"] and settings.cases in case.key
        ]
        if missing and time.monotonic() < deadline:
            asyncio.run(_run_cluster(cluster, missing, deadline, settings, document))


async def _run_cluster(
    cluster: str, cases: list[Case], deadline: float, settings: argparse.Namespace, document: dict[str, Any]
) -> None:
    async with local_mesh(_cluster(cluster, settings)) as address, Client(address) as client:
        await client.profile_devices(settings.model)
        for case in cases:
            if time.monotonic() > deadline:
                return
            document["cases"][case.key] = await _measure(client, case, settings)
            settings.output.write_text(json.dumps(document, indent=1))
            print(case.key, document["cases"][case.key]["tokens_per_s"], file=sys.stderr, flush=True)


async def _measure(client: Client, case: Case, settings: argparse.Namespace) -> dict[str, Any]:
    requests, prompt_tokens, new_tokens = WORKLOADS[case.workload]
    limit = await _quality_limit(client, case, settings)
    strategy = case.strategy.removesuffix("-exact")
    options = PlanOptions(strategy=strategy, quality_budget=limit, time_limit_s=PLANNING_S)
    vocabulary = read_shape(settings.model).vocab_size
    lines = [
        {
            "custom_id": str(row),
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": _prompt(row, prompt_tokens, vocabulary), "max_tokens": new_tokens, "temperature": 0},
        }
        for row in range(requests)
    ]
    batches = []
    for _ in range(NUM_RUNS):  # one after another, so that stages keep their weights
        batch = await client.submit(lines, model=settings.model, plan_options=options, ignore_stop=True)
        async for latest in client.watch(batch.batch_id):
            batch = latest
        if batch.plan is None or batch.requests_completed != requests:
            return {"error": batch.status_message, "tokens_per_s": None}
        batches.append(batch)
    typical = median_low((batch.running_s, number) for number, batch in enumerate(batches))[1]
    plan = batches[typical].plan
    return {
        "wall_s": [batch.running_s for batch in batches],
        "tokens_per_s": requests * new_tokens / batches[typical].running_s,
        "predicted_s": [batch.plan.estimate.total_s for batch in batches],
        "quality_loss": plan.estimate.quality_loss,
        "stages": [[stage.device_id, len(stage.layers)] for stage in plan.stages],
        "schemes": [layer.scheme for stage in plan.stages for layer in stage.layers],
        "micro_batches": [plan.prefill_micro_batch, plan.decode_micro_batch, plan.num_lanes],
    }


async def _quality_limit(client: Client, case: Case, settings: argparse.Namespace) -> float | None:
    """The sum of omega that a strategy may come to; None where it is free."""
    if case.strategy not in QUALITY_LIMITS:
        return None
    requests, prompt_tokens, new_tokens = WORKLOADS[case.workload]
    bucket = LengthBucket(prompt_tokens, new_tokens, requests)
    previewed = await client.preview_plan(settings.model, [bucket], strategies=REFERENCES)
    losses = [result.plan.estimate.quality_loss for result in previewed if result.plan]
    return QUALITY_LIMITS[case.strategy](losses) if losses else None


def _perplexities(settings: argparse.Namespace, document: dict[str, Any]) -> None:
    for case in document["cases"].values():
        precisions = ",".join(case.get("schemes", ()))
        if precisions and precisions not in document["perplexity"]:
            command = [sys.executable, "-m", "llmpq.cli", "eval", "ppl", "--model", settings.model, "--json"]
            command += ["--text", str(ROOT / "tests/data/wikitext/wiki.test.head.raw"), "--window", "1024"]
            command += ["--tokens", str(settings.tokens), "--precisions", precisions]
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 our own command
            document["perplexity"][precisions] = json.loads(done.stdout)["perplexity"]
            settings.output.write_text(json.dumps(document, indent=1))
            print(document["perplexity"][precisions], precisions, file=sys.stderr, flush=True)


def _table(_settings: argparse.Namespace, document: dict[str, Any]) -> None:
    print(
        "| cluster | workload | strategy | tokens/s | predicted/measured | perplexity | stages | layers | eta, xi, mu |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in _cases(document):
        found = document["cases"][case.key]
        if "schemes" not in found:
            print(f"| {case.cluster} | {case.workload} | {case.strategy} | no plan |  |  |  |  |  |")
            continue
        perplexity = document["perplexity"].get(",".join(found["schemes"]), float("nan"))
        counts = " ".join(f"{scheme} x{found['schemes'].count(scheme)}" for scheme in dict.fromkeys(found["schemes"]))
        ratio = median(found["predicted_s"]) / median(found["wall_s"])
        stages = ", ".join(f"{device} {layers}" for device, layers in found["stages"])
        sizes = ", ".join(map(str, found["micro_batches"]))
        print(
            f"| {case.cluster} | {case.workload} | {case.strategy} | {found['tokens_per_s']:.1f} | {ratio:.2f} "
            f"| {perplexity:.2f} | {stages} | {counts} | {sizes} |"
        )
    for cluster, workload in product(CLUSTERS, WORKLOADS):
        found = {
            name: document["cases"].get(Case(cluster, workload, name).key, {}).get("tokens_per_s")
            for name in STRATEGIES
        }
        speeds = {name: speed for name, speed in found.items() if speed}
        for ours in ("llm-pq", "llm-pq-exact"):
            if ours in speeds and all(name in speeds for name in REFERENCES):
                ratios = ", ".join(f"{speeds[ours] / speeds[name]:.2f} of {name}" for name in speeds if name != ours)
                of_mean = speeds[ours] / mean(speeds[name] for name in REFERENCES)
                print(f"\n{cluster}, {workload}: {ours} is {of_mean:.2f} of the mean of the references; {ratios}.")


def _cases(document: dict[str, Any]) -> Iterator[Case]:
    every = (Case(*parts) for parts in product(CLUSTERS, WORKLOADS, STRATEGIES))
    return (case for case in every if case.key in document["cases"])


def _cluster(name: str, settings: argparse.Namespace) -> ClusterSpec:
    stages = tuple(
        StageSpec(cpu_class, cpu_class=cpu_class, cores=(core,), memory_budget_bytes=budget_mb * 10**6)
        for core, (cpu_class, budget_mb) in enumerate(zip(CLUSTERS[name], BUDGETS_MB, strict=True))
    )
    return ClusterSpec(stages, state=settings.output.with_suffix(".state").resolve())


def _prompt(row: int, length: int, vocabulary: int) -> list[int]:
    """Token ids that any model has, different in every prompt."""
    return [(7919 * (row * length + at) + 31) % (vocabulary - 300) + 300 for at in range(length)]


STEPS = {"rate": _rate, "run": _run, "perplexity": _perplexities, "table": _table}


if __name__ == "__main__":
    main()
