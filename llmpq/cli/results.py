"""`llmpq results` and `llmpq cancel`."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from llmpq.batch import Batch
from llmpq.cli import options
from llmpq.cli.collect import collect
from llmpq.cli.connection import running
from llmpq.cli.result_files import ResultFiles
from llmpq.cli.run_batch import report
from llmpq.cli.terminal import print_json, stdout
from llmpq.client import Client
from llmpq.report import batch_report

BatchId = Annotated[str, typer.Argument(metavar="BATCH_ID", help="As `run-batch` and `status` name it.")]


def results(
    *,
    batch_id: BatchId,
    output_file: Annotated[Path, typer.Option("-o", "--output", dir_okay=False, help="Where the answers go.")],
    coordinator: options.RunningCoordinator = "",
    as_json: options.Json = False,
) -> None:
    """Write the answers of a batch submitted earlier, waiting until it is done.

    [bold]Examples[/bold]

      llmpq results 0c5e -o out.jsonl --coordinator host:50051

    Files, exit status and JSON keys are those of `run-batch`.
    """
    files = ResultFiles(output_file)
    batch = asyncio.run(_results(running(coordinator), batch_id, files))
    report(batch, files, as_json=as_json)


def cancel(
    *,
    batch_id: BatchId,
    coordinator: options.RunningCoordinator = "",
    as_json: options.Json = False,
) -> None:
    """Stop a batch; requests that are finished keep their answers.

    [bold]Examples[/bold]

      llmpq cancel 0c5e --coordinator host:50051

    [bold]JSON keys[/bold]: those of `run-batch`, without output and errors.
    """
    batch = asyncio.run(_cancel(running(coordinator), batch_id))
    if as_json:
        print_json(batch_report(batch))
    else:
        answered = f"{batch.requests_completed} of {batch.requests_total} requests answered"
        stdout.print(f"Batch {batch.batch_id} is {batch.state.label}: {answered}.")


async def _results(client: Client, batch_id: str, files: ResultFiles) -> Batch:
    async with client:
        await anext(client.watch(batch_id))  # if there is no such batch, the files are left alone
        with files:
            return await collect(client, batch_id, files.write)


async def _cancel(client: Client, batch_id: str) -> Batch:
    async with client:
        return await client.cancel(batch_id)
