"""`llmpq status`."""

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from llmpq.batch import Batch, Cluster
from llmpq.cli import options
from llmpq.cli.connection import running
from llmpq.cli.tables import batch_table, cluster_table, plan_table, stage_table
from llmpq.cli.terminal import print_json, stdout
from llmpq.client import Client
from llmpq.report import batch_report


def status(
    *,
    batch_id: Annotated[str, typer.Argument(metavar="BATCH_ID", help="Show one batch, with its plan.")] = "",
    coordinator: options.RunningCoordinator = "",
    as_json: options.Json = False,
) -> None:
    """Show the cluster and its batches, or one batch in detail.

    [bold]Examples[/bold]

      llmpq status --coordinator host:50051
      llmpq status 0c5e --coordinator host:50051

    Of the newest batch, or the one that is named, times of each stage are
    shown as predicted and as measured.

    [bold]JSON keys[/bold]: planner_address, stages, batches; for one batch those of
    `run-batch`, and plan.
    """
    client = running(coordinator)
    if batch_id:
        _show_batch(asyncio.run(_batch(client, batch_id)), as_json=as_json)
    else:
        _show_cluster(*asyncio.run(_cluster(client)), as_json=as_json)


def _show_batch(batch: Batch, *, as_json: bool) -> None:
    if as_json:
        print_json(batch_report(batch) | {"plan": asdict(batch.plan) if batch.plan else None})
        return
    stdout.print(batch_table([batch]))
    if batch.status_message:
        stdout.print(batch.status_message, markup=False)
    if batch.plan:
        stdout.print(plan_table(batch.plan))
        stdout.print(stage_table(batch, batch.plan))
    for stage in batch.stages:
        if stage.activity:
            stdout.print(f"{stage.device_id}: {stage.activity}", markup=False)


def _show_cluster(cluster: Cluster, batches: list[Batch], *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(cluster) | {"batches": [batch_report(batch) for batch in batches]})
        return
    stdout.print(cluster_table(cluster))
    stdout.print(batch_table(batches))
    latest = next((batch for batch in batches if batch.plan), None)
    if latest and latest.plan:
        stdout.print(stage_table(latest, latest.plan))


async def _batch(client: Client, batch_id: str) -> Batch:
    async with client:
        return await client.get(batch_id)


async def _cluster(client: Client) -> tuple[Cluster, list[Batch]]:
    async with client:
        batches = [batch async for batch in client.list()]
        return await client.cluster(), [await client.get(batch.batch_id) for batch in batches[:1]] + batches[1:]
