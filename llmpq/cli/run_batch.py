"""`llmpq run-batch`."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from llmpq.batch import Batch, BatchState
from llmpq.cli import options
from llmpq.cli.collect import collect
from llmpq.cli.connection import MeshChoice, model_path
from llmpq.cli.result_files import ResultFiles
from llmpq.cli.terminal import note, print_json, stdout
from llmpq.report import batch_report, tokens_per_s
from llmpq.units import format_seconds


def run_batch(
    *,
    input_file: Annotated[
        Path,
        typer.Option("-i", "--input", exists=True, dir_okay=False, help="Requests, in OpenAI's batch format."),
    ],
    output_file: Annotated[
        Path,
        typer.Option("-o", "--output", dir_okay=False, help="Answers; complete once it has this name."),
    ],
    model: Annotated[
        str,
        typer.Option(help="A Hugging Face directory or a .gguf file; overrides the `model` of the lines."),
    ] = "",
    coordinator: options.Coordinator = "",
    stages: options.Stages = None,
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
    max_tokens: Annotated[int, typer.Option(min=0, help="For lines that set none; 0 is the endpoint's default.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Run a file of prompts and write a file of answers.

    Each line of the input is a JSON object with `custom_id`, `method`, `url`
    (/v1/chat/completions or /v1/completions) and `body`. Lines that cannot be
    run do not stop the others: they go to a file `.errors.jsonl` beside the output.

    [bold]Examples[/bold]

      llmpq run-batch -i in.jsonl -o out.jsonl --model models/SmolLM2-135M
      llmpq run-batch -i in.jsonl -o out.jsonl --model m.gguf --stages 2
      llmpq run-batch -i in.jsonl -o out.jsonl --coordinator host:50051

    [bold]Exit status[/bold]: 0 if the batch was completed, even if single lines
    failed; 1 if it was not, or if every line failed; 2 for wrong usage.

    [bold]JSON keys[/bold]: batch_id, state, status_message, model, requests_total,
    requests_completed, requests_failed, prompt_tokens, generated_tokens, wall_s
    (from the first prefill to the last token), tokens_per_s, plan_hash, stages,
    output, errors.
    """
    if output_file.resolve() == input_file.resolve():
        raise typer.BadParameter("The output would replace the input.", param_hint="--output")
    mesh = MeshChoice.of_flags(coordinator, stages)
    plan_options = options.plan_options(
        is_local=mesh.is_local,
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
    )
    mesh.check_layers(plan_options, model)
    files = ResultFiles(output_file)
    submission = {"model": model_path(model), "plan_options": plan_options, "default_max_tokens": max_tokens}
    batch = asyncio.run(_run(mesh, input_file, files, submission))
    report(batch, files, as_json=as_json)


def report(batch: Batch, files: ResultFiles, *, as_json: bool) -> None:
    """Says what became of a batch and where its answers are; exits with 1 if there are none or it did not complete."""
    errors = str(files.errors) if files.num_errors else None
    if as_json:
        print_json(batch_report(batch) | {"output": str(files.output), "errors": errors})
    else:
        stdout.print(
            f"{batch.requests_completed} of {batch.requests_total} requests answered in {files.output}: "
            f"{batch.generated_tokens:,} tokens in {format_seconds(batch.running_s)}, "
            f"{tokens_per_s(batch):.1f} tokens/s",
            soft_wrap=True,
        )
    if errors:
        note(f"{files.num_errors} request(s) failed; see {errors}")
    if batch.state is not BatchState.COMPLETED:
        note(f"Batch {batch.batch_id} {batch.state.label}: {batch.status_message}")
    if batch.state is not BatchState.COMPLETED or batch.requests_failed == batch.requests_total:
        raise typer.Exit(1)


async def _run(mesh: MeshChoice, input_file: Path, files: ResultFiles, submission: dict[str, Any]) -> Batch:
    with files:
        async with mesh.connect() as client:
            batch = await client.submit(input_file, **submission)
            note(f"Submitted batch {batch.batch_id}: {batch.requests_total} requests.")
            try:
                return await collect(client, batch.batch_id, files.write)
            except asyncio.CancelledError:
                if not mesh.is_local:
                    note(
                        f"\nBatch {batch.batch_id} goes on. To get its answers:\n"
                        f"  llmpq results {batch.batch_id} -o {files.output} --coordinator {mesh.coordinator}",
                    )
                raise
