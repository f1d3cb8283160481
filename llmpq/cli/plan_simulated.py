"""`llmpq plan --cluster`: plans for devices that need not be there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from llmpq.cli.plan_document import explanation_entry, result_entry, trade_entry
from llmpq.cli.plan_picture import comparison_picture, trade_picture
from llmpq.cli.plan_tables import comparison_table, counterfactual_table, explanation_table, offload_table, trade_table
from llmpq.cli.tables import plan_table
from llmpq.cli.terminal import complain, note, print_json, stdout
from llmpq.comparison import Explanation, StrategyResult, TradePoint
from llmpq.errors import InvalidInputError
from llmpq.model import read_shape
from llmpq.plan import LengthBucket, PlanningProblem, PlanOptions
from llmpq.planner_client import PlannerClient, local_planner
from llmpq.scenario import Scenario


@dataclass(frozen=True)
class Simulated:
    """What to plan for.

    Attributes:
        model: A directory, a .gguf file or a name in the catalog; empty for the one that the cluster names.
        cluster: A YAML file or a name in the catalog.
        kernels: Kernel set; empty for the default.
        catalog: Files with further entries of the catalog.
        workload: The requests, unless `lengths` are given.
        lengths: Name of a distribution of lengths.
        num_requests: Requests.
        options: Objective and limits.
        planner: host:port of a running planner; empty for one of the call's own.
    """

    model: str
    cluster: str
    kernels: str
    catalog: tuple[Path, ...]
    workload: tuple[LengthBucket, ...]
    lengths: str
    num_requests: int
    options: PlanOptions
    planner: str

    def scenario(self) -> Scenario:
        """The names and documents for the planner; files are read here, which may be another host.

        Raises:
            NotFoundError, InvalidInputError: As `read_shape`.
            OSError: A file cannot be read.
        """
        is_here = Path(self.model).exists() and bool(self.model)
        is_file = Path(self.cluster).suffix in {".yaml", ".yml"}
        return Scenario(
            model_name=None if is_here else self.model,
            shape=read_shape(self.model) if is_here else None,
            cluster_name=None if is_file else self.cluster,
            cluster_document=_read(Path(self.cluster)) if is_file else None,
            catalog_documents=tuple(_read(path) for path in self.catalog),
            kernels=self.kernels,
            workload=self.workload,
            lengths=self.lengths,
            num_requests=self.num_requests if self.lengths else 0,
            options=self.options,
        )

    def described(self, problem: PlanningProblem) -> dict[str, Any]:
        """What is planned for, as plain values."""
        return {
            "model": self.model or problem.model,
            "cluster": self.cluster,
            "kernels": self.kernels or "modern",
            "batch": self.num_requests,
            "prompt_len": self.lengths or self.workload[0].prompt_tokens,
            "gen_len": self.lengths or self.workload[0].output_tokens,
            "simulated": True,
        }


@dataclass(frozen=True)
class Answers:
    """What the planner said.

    Attributes:
        problem: What was planned for.
        results: Of each strategy.
        explanation: If it was asked for.
        trade: The front of throughput and quality, if it was asked for.
    """

    problem: PlanningProblem
    results: list[StrategyResult]
    explanation: Explanation | None = None
    trade: tuple[TradePoint, ...] = ()


def plan_simulated(
    request: Simulated, strategy: str, *, is_explained: bool, is_pareto: bool, picture: Path | None, as_json: bool
) -> None:
    """Asks the planner and shows what it says; exits with 1 if no strategy finds a plan."""
    if picture and picture.suffix != ".svg":
        raise typer.BadParameter(f"'{picture}' has to end in .svg.")
    answers = asyncio.run(_ask(request, strategy, is_explained=is_explained, is_pareto=is_pareto))
    if as_json:
        print_json(_document(request, answers))
    else:
        _show(answers)
    if picture:
        drawn = trade_picture(answers.trade) if answers.trade else comparison_picture(answers.results)
        picture.write_text(drawn, encoding="utf-8")
        note(f"Drawn to {picture}.")
    if not any(result.estimate for result in answers.results):
        raise typer.Exit(1)


async def _ask(request: Simulated, strategy: str, *, is_explained: bool, is_pareto: bool) -> Answers:
    scenario = request.scenario()
    async with _planner(request.planner) as planner:
        problem = await planner.resolve(scenario)
        explanation = await planner.explain(problem) if is_explained else None
        trade = tuple(await planner.trade_quality(problem)) if is_pareto else ()
        if explanation and strategy != "all":
            results = [StrategyResult(explanation.plan.strategy, explanation.plan, simulation=explanation.simulation)]
        else:
            results = await planner.compare(problem, () if strategy == "all" else (strategy,))
    return Answers(problem, results, explanation, trade)


@asynccontextmanager
async def _planner(address: str) -> AsyncIterator[PlannerClient]:
    if address:
        async with PlannerClient(address) as planner:
            yield planner
        return
    async with local_planner() as own_address, PlannerClient(own_address) as planner:
        yield planner


def _show(answers: Answers) -> None:
    note("Simulated: no device was measured for this.")
    if len(answers.results) > 1:
        stdout.print(comparison_table(answers.results, answers.problem.options))
    else:
        for result in answers.results:
            _show_one(result)
    for result in answers.results:
        if result.error:
            complain(f"{result.strategy}: {result.error}")
    if answers.explanation:
        stdout.print(explanation_table(answers.explanation))
        stdout.print(answers.explanation.summary)
        stdout.print(counterfactual_table(answers.explanation))
    if answers.trade:
        stdout.print(trade_table(answers.trade))


def _show_one(result: StrategyResult) -> None:
    if result.plan:
        stdout.print(plan_table(result.plan))
        if result.simulation:
            rate, total_s = result.simulation.throughput_tokens_per_s, result.simulation.total_s
            stdout.print(f"simulated with the coordinator's scheduler: {total_s:.1f} s, {rate:.1f} tokens/s")
    elif result.offload:
        stdout.print(offload_table(result.strategy, result.offload, result.throughput_tokens_per_s))


def _document(request: Simulated, answers: Answers) -> dict[str, Any]:
    entries = [result_entry(result, answers.problem.options) for result in answers.results]
    document = request.described(answers.problem) | {"plans": entries}
    if answers.explanation:
        document["explanation"] = explanation_entry(answers.explanation)
    if answers.trade:
        document["pareto"] = [trade_entry(point) for point in answers.trade]
    return document


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8.", subject=str(path)) from error
