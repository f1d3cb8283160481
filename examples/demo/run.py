"""Serves a real language model with two unlike stage servers on this machine, from a file of prompts to answers.

    python examples/demo/run.py

Starts a planner, a coordinator and the stages of cluster.yaml as separate processes, submits examples/prompts.jsonl,
and shows loading and progress, the plan, some answers, and predicted against measured stage times. The same figures are
in build/demo/report.json. Exits with 1 if a request failed.
"""

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from llmpq import Batch, Client, PlanOptions, Result
from llmpq.cli.collect import collect
from llmpq.cli.tables import cluster_table, plan_table, stage_table
from llmpq.cli.terminal import stdout as console
from llmpq.cluster_file import ClusterSpec, StageSpec, read_cluster_file
from llmpq.errors import MeshError
from llmpq.local_mesh import local_mesh
from llmpq.report import batch_report, tokens_per_s
from stage_server.cpu_class import CPU_CLASSES, available_cpu_classes

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "build" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = ROOT / "examples" / "prompts.jsonl"
CLUSTER = Path(__file__).with_name("cluster.yaml")
REPORT = ROOT / "build" / "demo" / "report.json"

#: What quality is worth: ten seconds for the damage of four bits on every layer.
OBJECTIVE = PlanOptions(quality_weight=10.0)
#: Answers shown.
NUM_SHOWN = 4


def main() -> int:
    """Runs the demo; returns its exit code."""
    if not MODEL.is_file():
        console.print(f"No model at {MODEL}; fetch it with: python examples/fetch_smollm2.py")
        return 1
    begin = time.monotonic()
    try:
        batch, results = asyncio.run(serve(fit_to_machine(read_cluster_file(CLUSTER))))
    except MeshError as error:
        console.print(f"error: {error.message}", style="bold red", highlight=False)
        return 1
    show(batch, results)
    write_report(batch, elapsed_s=time.monotonic() - begin)
    return 0 if batch.requests_completed == batch.requests_total else 1


def fit_to_machine(cluster: ClusterSpec) -> ClusterSpec:
    """The cluster as this machine can run it; says what it had to change."""
    classes, cores = available_cpu_classes(), sorted(os.sched_getaffinity(0))
    if len(cores) < len(cluster.stages):
        console.print(f"This machine lends {len(cores)} core(s): the {len(cluster.stages)} stages share.")
    return replace(cluster, stages=tuple(_fit_stage(stage, classes, cores) for stage in cluster.stages))


async def serve(cluster: ClusterSpec) -> tuple[Batch, list[Result]]:
    """Starts the cluster and runs the prompts through it; returns the finished batch and its results."""
    results: list[Result] = []
    _heading("Starting planner, coordinator and stage servers")
    async with local_mesh(cluster) as coordinator, Client(coordinator) as client:
        console.print(cluster_table(await client.cluster()))
        _heading("Submitting a batch: devices are measured, the plan is made, stages load their layers")
        batch = await client.submit(PROMPTS, model=str(MODEL), plan_options=OBJECTIVE)
        batch = await collect(client, batch.batch_id, results.append)
    return batch, results


def show(batch: Batch, results: list[Result]) -> None:
    """Prints the plan, some answers, and how it went."""
    if batch.plan is None:
        console.print(f"The batch {batch.state.label}: {batch.status_message}")
        return
    _heading("The plan")
    console.print(plan_table(batch.plan))
    _heading("Some answers")
    prompts = _prompts()
    answers = sorted((result for result in results if not result.is_error), key=lambda result: result.line_number)
    for result in answers[:: max(len(answers) // NUM_SHOWN, 1)][:NUM_SHOWN]:
        message = json.loads(result.json)["response"]["body"]["choices"][0]["message"]
        console.print(f"> {prompts[result.custom_id]}", style="bold", highlight=False)
        console.print(message["content"].strip() + "\n", markup=False, highlight=False)
    _heading("Predicted against measured")
    console.print(stage_table(batch, batch.plan))
    console.print(
        f"{batch.requests_completed} of {batch.requests_total} requests answered, {batch.requests_failed} failed: "
        f"{batch.generated_tokens:,} tokens in {batch.running_s:.1f} s, {tokens_per_s(batch):.1f} tokens/s",
    )


def write_report(batch: Batch, *, elapsed_s: float) -> None:
    """Writes all figures to build/demo/report.json; `elapsed_s` is the whole demo, processes and profiling included."""
    plan = asdict(batch.plan) if batch.plan else None
    document = {"plan": plan} | batch_report(batch) | {"elapsed_s": round(elapsed_s, 1)}
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console.print(f"The whole demo took {elapsed_s:.0f} s; all figures are in {REPORT.relative_to(ROOT)}")


def _fit_stage(stage: StageSpec, classes: tuple[str, ...], cores: list[int]) -> StageSpec:
    ordered = list(CPU_CLASSES)
    not_newer = [name for name in classes if ordered.index(name) >= ordered.index(stage.cpu_class)]
    cpu_class = not_newer[0] if not_newer else ""
    if cpu_class != stage.cpu_class:
        instead = cpu_class or "what the CPU has"
        console.print(f"This CPU has no {stage.cpu_class}: stage '{stage.name}' computes with {instead} instead.")
    return replace(stage, cpu_class=cpu_class, cores=tuple(cores[core % len(cores)] for core in stage.cores))


def _prompts() -> dict[str, str]:
    """The question of each request, by custom_id."""
    requests = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    return {request["custom_id"]: request["body"]["messages"][-1]["content"] for request in requests}


def _heading(text: str) -> None:
    console.print(f"\n{text}", style="bold cyan", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
