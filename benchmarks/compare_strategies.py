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
that beats one of them must do so at its quality: llm-pq plans under a limit on the sum of omega equal to that of the
least exact of uniform and pipeedge (`llm-pq`), and to that of the most exact (`llm-pq-exact`), the latter also with
keys and values in 8 bits (`llm-pq-exact-kv8`). Perplexities say afterwards what the limits came to. The figures hold
for this machine: carry the ratios away.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

from mixed_cluster import CLUSTERS, MODEL, WORKLOADS, layer_counts, perplexity, run_batches, two_stages

from llmpq import Client, PlanOptions
from llmpq.cluster_file import ClusterSpec
from llmpq.local_mesh import local_mesh

#: Each limits itself to the memory; those of llm-pq to quality as well, of the references the worst or the best.
OURS = ("llm-pq", "llm-pq-exact", "llm-pq-exact-kv8")
STRATEGIES = ("uniform", "pipeedge", "het", "adabits", "llm-pq-heuristic", *OURS)
QUALITY_LIMITS = {"llm-pq-heuristic": max, "llm-pq": max, "llm-pq-exact": min, "llm-pq-exact-kv8": min}
#: Whose mean llm-pq is compared with, as in the paper.
REFERENCES = ("uniform", "pipeedge")
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

    @property
    def has_int8_kv_cache(self) -> bool:
        """Whether keys and values are kept in 8 bits."""
        return self.strategy.endswith("-kv8")

    def precisions(self, found: Mapping[str, Any]) -> str:
        """What perplexity is of: the layers of its plan, and the cache."""
        return ",".join(found.get("schemes", ())) + (" kv8" if self.has_int8_kv_cache else "")


def main() -> None:
    """Runs one of the steps, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=(*STEPS, "all"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default=MODEL)
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
            for has_int8_kv_cache in (False, True):
                options = PlanOptions(has_int8_kv_cache=has_int8_kv_cache)
                await client.profile_devices(settings.model, plan_options=options)
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
        for case in cases:
            if time.monotonic() > deadline:
                return
            document["cases"][case.key] = await _measure(client, case, settings)
            settings.output.write_text(json.dumps(document, indent=1))
            print(case.key, document["cases"][case.key]["tokens_per_s"], file=sys.stderr, flush=True)


async def _measure(client: Client, case: Case, settings: argparse.Namespace) -> dict[str, Any]:
    limit = await _quality_limit(client, case, settings)
    options = PlanOptions(
        strategy="llm-pq" if case.strategy in OURS else case.strategy,
        quality_budget=limit,
        time_limit_s=PLANNING_S,
        has_int8_kv_cache=case.has_int8_kv_cache,
    )
    return await run_batches(client, settings.model, WORKLOADS[case.workload], options)


async def _quality_limit(client: Client, case: Case, settings: argparse.Namespace) -> float | None:
    """The sum of omega that a strategy may come to; None where it is free."""
    if case.strategy not in QUALITY_LIMITS:
        return None
    previewed = await client.preview_plan(settings.model, [WORKLOADS[case.workload]], strategies=REFERENCES)
    losses = [result.plan.estimate.quality_loss for result in previewed if result.plan]
    return QUALITY_LIMITS[case.strategy](losses) if losses else None


def _perplexities(settings: argparse.Namespace, document: dict[str, Any]) -> None:
    for case in _cases(document):
        found = document["cases"][case.key]
        precisions = case.precisions(found)
        if "schemes" in found and precisions not in document["perplexity"]:
            loss = perplexity(
                settings.model, found["schemes"], settings.tokens, has_int8_kv_cache=case.has_int8_kv_cache
            )
            document["perplexity"][precisions] = loss
            settings.output.write_text(json.dumps(document, indent=1))
            print(loss, precisions, file=sys.stderr, flush=True)


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
        loss = document["perplexity"].get(case.precisions(found), float("nan"))
        ratio = median(found["predicted_s"]) / median(found["wall_s"])
        stages = ", ".join(f"{device} {layers}" for device, layers in found["stages"])
        sizes = ", ".join(map(str, found["micro_batches"]))
        print(
            f"| {case.cluster} | {case.workload} | {case.strategy} | {found['tokens_per_s']:.1f} | {ratio:.2f} "
            f"| {loss:.2f} | {stages} | {layer_counts(found['schemes'])} | {sizes} |"
        )
    for cluster, workload in product(CLUSTERS, WORKLOADS):
        found = {
            name: document["cases"].get(Case(cluster, workload, name).key, {}).get("tokens_per_s")
            for name in STRATEGIES
        }
        speeds = {name: speed for name, speed in found.items() if speed}
        for ours in OURS:
            if ours in speeds and all(name in speeds for name in REFERENCES):
                ratios = ", ".join(f"{speeds[ours] / speeds[name]:.2f} of {name}" for name in speeds if name != ours)
                of_mean = speeds[ours] / mean(speeds[name] for name in REFERENCES)
                print(f"\n{cluster}, {workload}: {ours} is {of_mean:.2f} of the mean of the references; {ratios}.")


def _cases(document: dict[str, Any]) -> Iterator[Case]:
    every = (Case(*parts) for parts in product(CLUSTERS, WORKLOADS, STRATEGIES))
    return (case for case in every if case.key in document["cases"])


def _cluster(name: str, settings: argparse.Namespace) -> ClusterSpec:
    return two_stages(name, settings.output.with_suffix(".state"))


STEPS = {"rate": _rate, "run": _run, "perplexity": _perplexities, "table": _table}


if __name__ == "__main__":
    main()
