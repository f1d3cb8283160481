"""What each part of llm-pq is worth: plans without it, measured on two unlike CPU stages of this machine.

    python benchmarks/ablations.py -o build/ablations.json                   # all of it, on an idle machine
    python benchmarks/ablations.py theta indicator -o build/ablations.json   # one or some
    python benchmarks/ablations.py --table -o build/ablations.json           # what is there

What is in the file is not measured again. Of each plan: tokens per second of the median of three batches, perplexity,
and seconds to plan. `theta` is what a unit of omega is worth in seconds; `indicator` says what quantizing a layer is
thought to cost, within the same budget of omega; `phases` compares a micro-batch size for each phase with one for both,
the best predicted that there is; `groups` has layers share stage and precision in groups. Every plan starts from the
same profiles, which a few batches have corrected before, and does not profit from the runs of another one. The figures
hold for this machine: carry the ratios away.
"""

import argparse
import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from mixed_cluster import MODEL, WORKLOADS, layer_counts, perplexity, run_batches, two_stages
from notebook import Notebook

from llmpq import Client, PlanOptions
from llmpq.local_mesh import local_mesh

CLUSTER, WORKLOAD = "avx512+sse4", "balanced"
PLANNING_S = 10.0
_FREE = PlanOptions(quality_weight=0.2, time_limit_s=PLANNING_S)
#: May lose half of what w4 on every layer loses.
_LIMITED = PlanOptions(quality_budget=0.5, time_limit_s=PLANNING_S)
#: Run before anything counts, because runs correct the profiles.
_PREPARATIONS = (_FREE, _LIMITED, replace(_FREE, prefill_micro_batch=6, decode_micro_batch=6))

#: The plans of each ablation by name; of several options, those with the least predicted time are run.
ABLATIONS: dict[str, dict[str, Sequence[PlanOptions]]] = {
    "theta": {f"{theta:g} s": [replace(_FREE, quality_weight=theta)] for theta in (0.05, 0.2, 0.8)},
    "indicator": {name: [replace(_LIMITED, indicator=name)] for name in ("hessian", "variance", "random")},
    "phases": {
        "eta and xi": [_LIMITED],
        "eta = xi": [
            replace(_LIMITED, prefill_micro_batch=size, decode_micro_batch=size) for size in (1, 2, 3, 4, 6, 12)
        ],
    },
    "groups": {f"of {size}": [replace(_FREE, layers_per_group=size)] for size in (1, 2, 3, 5, 10)},
}


def main() -> None:
    """Measures what is asked for and is not there yet; prints all that is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablations", nargs="*", help=f"of {', '.join(ABLATIONS)}; all by default")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--tokens", type=int, default=4096, help="of WikiText-2, for perplexity; default %(default)s")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    settings = parser.parse_args()
    unknown = set(settings.ablations) - set(ABLATIONS)
    if unknown:
        parser.error(f"no ablation {', '.join(unknown)}; there are {', '.join(ABLATIONS)}")
    notebook = Notebook(settings.output, {"model": settings.model, "tokens": str(settings.tokens)})
    if not settings.table:
        for ablation in settings.ablations or ABLATIONS:
            for name, choices in ABLATIONS[ablation].items():
                _measure(notebook, f"{ablation}: {name}", choices, settings)
    _print_table(notebook.results)


def _measure(notebook: Notebook, name: str, choices: Sequence[PlanOptions], settings: argparse.Namespace) -> None:
    prepared = settings.output.with_suffix(".state")
    notebook.once("prepared", lambda: asyncio.run(_prepare(settings.model, prepared)))

    def run() -> dict[str, Any]:
        with TemporaryDirectory() as folder:
            state = shutil.copytree(prepared, Path(folder) / "state")
            return asyncio.run(_run(settings.model, choices, state))

    found = notebook.once(name, run)
    if "schemes" in found:
        schemes = found["schemes"]
        notebook.once(_perplexity_of(schemes), lambda: perplexity(settings.model, schemes, settings.tokens))


async def _prepare(model: str, state: Path) -> list[Any]:
    """Profiles the stages, and corrects the profiles by running batches."""
    async with local_mesh(two_stages(CLUSTER, state)) as address, Client(address) as client:
        await client.profile_devices(model)
        return [await run_batches(client, model, WORKLOADS[WORKLOAD], options) for options in _PREPARATIONS]


async def _run(model: str, choices: Sequence[PlanOptions], state: Path) -> dict[str, Any]:
    """What `run_batches` returns, and seconds of planning."""
    workload, planned_s = WORKLOADS[WORKLOAD], []
    async with local_mesh(two_stages(CLUSTER, state)) as address, Client(address) as client:
        plans = []
        for options in choices:
            (result,) = await client.preview_plan(model, [workload], plan_options=options)
            if result.plan is not None:
                planned_s.append(result.plan.estimate.solve_s)
                plans.append((result.plan.estimate.total_s, options))
        if not plans:
            return {"error": "no plan"}
        best = min(plans, key=lambda plan: plan[0])[1]
        return {**await run_batches(client, model, workload, best), "planning_s": sum(planned_s)}


def _perplexity_of(schemes: Sequence[str]) -> str:
    return f"perplexity of {','.join(schemes)}"


def _print_table(results: dict[str, Any]) -> None:
    print("| plan | tokens/s | perplexity | planned in s | loss | predicted/measured | layers | eta, xi, mu |")
    print("|---|---|---|---|---|---|---|---|")
    for name in (f"{ablation}: {plan}" for ablation, plans in ABLATIONS.items() for plan in plans):
        found = results.get(name, {})
        if "schemes" not in found:
            if found:
                print(f"| {name} | {found['error']} | | | | | | |")
            continue
        loss = results.get(_perplexity_of(found["schemes"]), float("nan"))
        ratio = median(found["predicted_s"]) / median(found["wall_s"])
        sizes = ", ".join(map(str, found["micro_batches"]))
        print(
            f"| {name} | {found['tokens_per_s']:.1f} | {loss:.2f} | {found['planning_s']:.2f} "
            f"| {found['quality_loss']:.3f} | {ratio:.2f} | {layer_counts(found['schemes'])} | {sizes} |"
        )


if __name__ == "__main__":
    main()
