"""`llmpq plan`."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from llmpq.batch import PreviewedPlan
from llmpq.cli import options
from llmpq.cli.connection import MeshChoice, model_path
from llmpq.cli.progress import StatusLines
from llmpq.cli.tables import plan_table
from llmpq.cli.terminal import complain, print_json, stdout
from llmpq.plan import STRATEGIES, LengthBucket, PlanOptions


def plan(
    *,
    model: Annotated[str, typer.Option(help="A Hugging Face directory or a .gguf file.")],
    num_requests: Annotated[int, typer.Option("--batch", min=1, help="Requests.")],
    prompt_tokens: Annotated[int, typer.Option("--prompt-len", min=1, help="Tokens of each prompt.")],
    output_tokens: Annotated[int, typer.Option("--gen-len", min=1, help="Tokens generated for each.")],
    strategy: Annotated[
        str,
        typer.Option(metavar="|".join(("all", *STRATEGIES)), help="How to plan; `all` compares."),
    ] = "llm-pq",
    coordinator: options.Coordinator = "",
    stages: options.Stages = None,
    scheme: options.Scheme = "",
    precisions: options.Precisions = "",
    group: options.Group = None,
    rounding: options.RoundingMethod = "",
    symmetric: options.Symmetric = False,
    indicator: options.Indicator = "",
    quality_weight: options.QualityWeight = None,
    quality_budget: options.QualityBudget = None,
    as_json: options.Json = False,
) -> None:
    r"""Plan a batch without running it: layers, precisions, memory, times.

    Devices that have not seen the model yet are profiled first.

    [bold]Examples[/bold]

      llmpq plan --model m.gguf --batch 32 --prompt-len 128 --gen-len 64
      llmpq plan --model m.gguf --batch 32 --prompt-len 128 --gen-len 64 \
          --stages 2 --strategy all --quality-budget 0.3

    [bold]Exit status[/bold]: 0 if a strategy found a plan; 1 if none did; 2 for wrong usage.

    [bold]JSON keys[/bold]: model, batch, prompt_len, gen_len, plans (a list of
    strategy, plan, error).
    """
    mesh = MeshChoice.of_flags(coordinator, stages)
    plan_options = options.plan_options(
        is_local=mesh.is_local,
        scheme=scheme,
        precisions=precisions,
        group=group,
        rounding=rounding,
        symmetric=symmetric,
        indicator=indicator,
        quality_weight=quality_weight,
        quality_budget=quality_budget,
        strategy="" if strategy == "all" else strategy,
    )
    workload = LengthBucket(prompt_tokens, output_tokens, num_requests)
    strategies = STRATEGIES if strategy == "all" else ()
    plans = asyncio.run(_preview(mesh, model, workload, plan_options, strategies))
    if as_json:
        work = {"batch": num_requests, "prompt_len": prompt_tokens, "gen_len": output_tokens}
        print_json({"model": model, **work, "plans": [asdict(previewed) for previewed in plans]})
    else:
        _show(plans)
    if not any(previewed.plan for previewed in plans):
        raise typer.Exit(1)


def _show(plans: Sequence[PreviewedPlan]) -> None:
    for previewed in plans:
        if previewed.plan:
            stdout.print(plan_table(previewed.plan))
        else:
            complain(f"{previewed.strategy}: {previewed.error}")


async def _preview(
    mesh: MeshChoice,
    model: str,
    workload: LengthBucket,
    plan_options: PlanOptions,
    strategies: Sequence[str],
) -> tuple[PreviewedPlan, ...]:
    async with mesh.connect() as client:
        return await client.preview_plan(
            model_path(model),
            [workload],
            plan_options=plan_options,
            strategies=strategies,
            on_status=StatusLines().say,
        )
