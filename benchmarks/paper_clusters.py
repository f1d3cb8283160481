"""LLM-PQ's eleven clusters, all strategies, two generations of kernels; every figure is simulated.

    python benchmarks/paper_clusters.py [--time-limit SECONDS] [--clusters 1,3] [--write docs/planner.md]

Prints a Markdown table for each kernel set, or writes them between the markers in a document. 32 requests of 512 tokens
with 100 generated each, as in the paper. Throughputs are those of the discrete-event simulator.
"""

import argparse
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from math import exp, log
from pathlib import Path

from llmpq.comparison import StrategyResult
from llmpq.plan import OFFLOADING_STRATEGIES, STRATEGIES, LengthBucket, PlanOptions
from llmpq.scenario import Scenario
from planner_svc.planner import Planner
from planner_svc.scenario import resolve

KERNELS = ("llm-pq-2023", "modern")
WORKLOAD = (LengthBucket(prompt_tokens=512, output_tokens=100, count=32),)
NAMES = (*STRATEGIES, *OFFLOADING_STRATEGIES)
BEGIN, END = "<!-- paper clusters: made by benchmarks/paper_clusters.py -->", "<!-- end of paper clusters -->"


def main() -> None:
    """Plans, and prints or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=20.0, help="seconds for each strategy; default %(default)s")
    parser.add_argument("--clusters", default=",".join(map(str, range(1, 12))), help="default %(default)s")
    parser.add_argument("--write", type=Path, help="document with markers to write the tables into")
    arguments = parser.parse_args()
    clusters = [int(number) for number in arguments.clusters.split(",")]
    text = "\n\n".join(_table(kernels, clusters, arguments.time_limit) for kernels in KERNELS)
    if arguments.write:
        before, rest = arguments.write.read_text().split(BEGIN)
        arguments.write.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")
    else:
        print(text)


def _table(kernels: str, clusters: Sequence[int], time_limit_s: float) -> str:
    results = {number: _compared(number, kernels, time_limit_s) for number in clusters}
    return "\n".join(
        [
            f"Kernels `{kernels}`, **simulated**, {datetime.now(UTC):%Y-%m-%d}; tokens/s (quality loss):",
            "",
            "| cluster | " + " | ".join(NAMES) + " | planned in s, gap |",
            "|---|" + "---|" * (len(NAMES) + 1),
            *(_row(number, found) for number, found in results.items()),
            "",
            *_ratios(results),
        ]
    )


def _compared(number: int, kernels: str, time_limit_s: float) -> dict[str, StrategyResult]:
    options = PlanOptions(time_limit_s=time_limit_s)
    problem = resolve(Scenario(cluster_name=f"paper:{number}", kernels=kernels, workload=WORKLOAD, options=options))
    planner = Planner(time_limit_s)
    return {result.strategy: result for result in planner.compare(problem, NAMES)}


def _row(number: int, results: dict[str, StrategyResult]) -> str:
    found = results["llm-pq"].estimate
    proof = f"{found.solve_s:.1f}, {found.gap:.2%}" if found else ""
    return f"| {number} | " + " | ".join(_cell(results[name]) for name in NAMES) + f" | {proof} |"


def _cell(result: StrategyResult) -> str:
    if result.estimate is None:
        return result.reason.lower().replace("_", " ")
    return f"{result.throughput_tokens_per_s:.1f} ({result.estimate.quality_loss:.3f})"


def _ratios(results: dict[int, dict[str, StrategyResult]]) -> Iterator[str]:
    """Geometric means of llm-pq over each strategy, where both have a plan."""
    yield "llm-pq over each strategy, geometric mean of the clusters where both have a plan:"
    means = []
    for name in NAMES[1:]:
        pairs = [(found["llm-pq"], found[name]) for found in results.values()]
        logs = [
            log(ours.throughput_tokens_per_s / other.throughput_tokens_per_s)
            for ours, other in pairs
            if ours.estimate and other.estimate
        ]
        if logs:
            means.append(f"{name} {exp(sum(logs) / len(logs)):.2f} ({len(logs)})")
    yield ", ".join(means) + "."


if __name__ == "__main__":
    main()
