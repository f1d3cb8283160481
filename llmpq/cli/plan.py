"""`llmpq plan`."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from llmpq.batch import PreviewedPlan
from llmpq.cli import options
from llmpq.cli.connection import MeshChoice, model_path
from llmpq.cli.plan_answers import Answers, Questions, ask, present
from llmpq.cli.plan_document import result_entry
from llmpq.cli.plan_simulated import Simulated
from llmpq.cli.progress import StatusLines
from llmpq.cli.tables import plan_table
from llmpq.cli.terminal import complain, note, print_json, stdout
from llmpq.comparison import StrategyResult
from llmpq.plan import OBJECTIVES, OFFLOADING_STRATEGIES, STRATEGIES, LengthBucket, PlanOptions

_SIMULATED, _MORE = "Without devices", "More than a plan"
#: Beyond this, a number is a mistake.
_MOST = 10**7


def plan(
    *,
    model: Annotated[
        str,
        typer.Option(help="A Hugging Face directory or a .gguf file; with --cluster also a name, such as opt-30b."),
    ] = "",
    num_requests: Annotated[int, typer.Option("--batch", min=1, max=_MOST, help="Requests.")],
    prompt_tokens: Annotated[
        int | None, typer.Option("--prompt-len", min=1, max=_MOST, help="Tokens of each prompt.")
    ] = None,
    output_tokens: Annotated[
        int | None, typer.Option("--gen-len", min=1, max=_MOST, help="Tokens generated for each.")
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            metavar="|".join(("all", *STRATEGIES, *OFFLOADING_STRATEGIES)),
            help="How to plan; `all` compares. A mesh cannot run flexgen, which moves weights to the host.",
        ),
    ] = "llm-pq",
    objective: Annotated[
        str,
        typer.Option(
            metavar="|".join(OBJECTIVES),
            help="What to be best at: latency (of the batch, and so its tokens per "
            "second), throughput (batch after batch), or cost (price of the devices used).",
        ),
    ] = OBJECTIVES[0],
    deadline_s: Annotated[
        float, typer.Option("--deadline", min=0, metavar="SECONDS", help="Longest time of the batch; 0 is none.")
    ] = 0.0,
    time_limit_s: Annotated[
        float,
        typer.Option("--time-limit", min=0, metavar="SECONDS", help="Time to search; 0 is the planner's default."),
    ] = 0.0,
    layers_per_group: Annotated[
        int,
        typer.Option(min=0, max=_MOST, help="Layers that share stage and precision: coarser, but planned sooner."),
    ] = 0,
    coordinator: options.Coordinator = "",
    stages: options.Stages = None,
    cluster: Annotated[
        str,
        typer.Option(
            metavar="CLUSTER.yaml|NAME",
            rich_help_panel=_SIMULATED,
            help="Plan for devices that need not be there: a file, or paper:1 to paper:11. Simulated.",
        ),
    ] = "",
    kernels: Annotated[
        str,
        typer.Option(metavar="modern|llm-pq-2023", rich_help_panel=_SIMULATED, help="Kernels that devices run."),
    ] = "",
    lengths: Annotated[
        str,
        typer.Option(
            metavar="sharegpt|azure",
            rich_help_panel=_SIMULATED,
            help="Lengths of real requests, instead of --prompt-len and --gen-len.",
        ),
    ] = "",
    catalog: Annotated[
        list[Path] | None,
        typer.Option(rich_help_panel=_SIMULATED, help="File with further models, devices, kernels, clusters, lengths."),
    ] = None,
    planner: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", rich_help_panel=_MORE, help="A running planner; else one is started."),
    ] = "",
    explain: Annotated[
        bool,
        typer.Option("--explain", rich_help_panel=_MORE, help="What limits the plan and what would change it."),
    ] = False,
    pareto: Annotated[
        bool, typer.Option("--pareto", rich_help_panel=_MORE, help="Throughput against quality, several plans.")
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", rich_help_panel=_MORE, help="Draw the comparison or the Pareto front."),
    ] = None,
    scheme: options.Scheme = "",
    precisions: options.Precisions = "",
    group: options.Group = None,
    rounding: options.RoundingMethod = "",
    symmetric: options.Symmetric = False,
    int8_kv_cache: options.Int8KvCache = False,
    int8_activations: options.Int8Activations = False,
    indicator: options.Indicator = "",
    quality_weight: options.QualityWeight = None,
    quality_budget: options.QualityBudget = None,
    as_json: options.Json = False,
) -> None:
    r"""Plan a batch without running it: layers, precisions, memory, times.

    Devices that have not seen the model yet are profiled first. With --cluster
    nothing needs to be there, neither devices nor weights: what is shown is
    simulated.

    [bold]Examples[/bold]

      llmpq plan --model m.gguf --batch 32 --prompt-len 128 --gen-len 64
      llmpq plan --cluster paper:3 --batch 32 --prompt-len 512 --gen-len 100 --strategy all
      llmpq plan --cluster my.yaml --model llama-3-70b --batch 64 --lengths sharegpt --explain
      llmpq plan --coordinator HOST:PORT --model m.gguf --batch 32 --prompt-len 128 --gen-len 64 --explain

    [bold]Exit status[/bold]: 0 if a strategy found a plan; 1 if none did; 2 for wrong usage.

    [bold]JSON keys[/bold]: model, batch, prompt_len, gen_len, simulated, plans (a list
    of strategy, status, throughput_tokens_per_s, quality_loss, solve_s, gap,
    stages, plan, error); with --explain explanation; with --pareto pareto.
    """
    workload: tuple[LengthBucket, ...] = ()
    if prompt_tokens and output_tokens and not lengths:
        workload = (LengthBucket(prompt_tokens, output_tokens, num_requests),)
    elif prompt_tokens or output_tokens or not lengths:
        raise typer.BadParameter("Pass --prompt-len and --gen-len, or with --cluster --lengths.")
    mesh = MeshChoice.of_flags(coordinator, stages)
    plan_options = options.plan_options(
        is_local=mesh.is_local and not cluster,
        scheme=scheme,
        precisions=precisions,
        group=group,
        rounding=rounding,
        symmetric=symmetric,
        int8_kv_cache=int8_kv_cache,
        int8_activations=int8_activations,
        indicator=indicator,
        quality_weight=quality_weight,
        quality_budget=quality_budget,
        strategy="" if strategy == "all" or strategy in OFFLOADING_STRATEGIES else strategy,
        objective=objective,
        deadline_s=deadline_s,
        time_limit_s=time_limit_s,
        layers_per_group=layers_per_group,
    )
    questions = Questions(strategy, is_explained=explain, is_pareto=pareto, picture=picture, planner=planner)
    questions.check()
    if cluster:
        if coordinator or stages:
            raise typer.BadParameter("Pass --cluster, or --coordinator or --stages, not both.")
        request = Simulated(
            model, cluster, kernels, tuple(catalog or ()), workload, lengths, num_requests, plan_options
        )
        answers = asyncio.run(_ask_simulated(request, questions))
        note("Simulated: no device was measured for this.")
        present(answers, request.described(answers.problem), picture, as_json=as_json)
        return
    if not model:
        raise typer.BadParameter("Pass --model.")
    if any((kernels, lengths, catalog)) or strategy in OFFLOADING_STRATEGIES:
        raise typer.BadParameter(f"The options of '{_SIMULATED}' and flexgen need --cluster.")
    mesh.check_layers(plan_options, model)
    work = {"batch": num_requests, "prompt_len": prompt_tokens, "gen_len": output_tokens}
    if explain or pareto or picture or planner:
        answers = asyncio.run(_ask_mesh(mesh, model, workload, plan_options, questions))
        note("Predicted from what the devices were measured to take.")
        present(answers, {"model": model, **work, "simulated": False}, picture, as_json=as_json)
        return
    strategies = STRATEGIES if strategy == "all" else ()
    plans = asyncio.run(_preview(mesh, model, workload, plan_options, strategies))
    if as_json:
        results = [StrategyResult(previewed.strategy, previewed.plan, previewed.error) for previewed in plans]
        entries = [result_entry(result, plan_options) for result in results]
        print_json({"model": model, **work, "simulated": False, "plans": entries})
    else:
        _show(plans)
    if not any(previewed.plan for previewed in plans):
        raise typer.Exit(1)


async def _ask_simulated(request: Simulated, questions: Questions) -> Answers:
    scenario = request.scenario()
    async with questions.connect() as planner:
        return await ask(planner, await planner.resolve(scenario), questions)


async def _ask_mesh(
    mesh: MeshChoice, model: str, workload: Sequence[LengthBucket], plan_options: PlanOptions, questions: Questions
) -> Answers:
    async with mesh.connect() as client:
        path, say = model_path(model), StatusLines().say
        problem = await client.planning_problem(path, list(workload), plan_options=plan_options, on_status=say)
    async with questions.connect() as planner:
        return await ask(planner, problem, questions)


def _show(plans: Sequence[PreviewedPlan]) -> None:
    for previewed in plans:
        if previewed.plan:
            stdout.print(plan_table(previewed.plan))
        else:
            complain(f"{previewed.strategy}: {previewed.error}")


async def _preview(
    mesh: MeshChoice,
    model: str,
    workload: Sequence[LengthBucket],
    plan_options: PlanOptions,
    strategies: Sequence[str],
) -> tuple[PreviewedPlan, ...]:
    async with mesh.connect() as client:
        return await client.preview_plan(
            model_path(model),
            list(workload),
            plan_options=plan_options,
            strategies=strategies,
            on_status=StatusLines().say,
        )
