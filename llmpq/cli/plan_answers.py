"""What `llmpq plan` asks a planner about a problem, and how it shows the answers."""

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
from llmpq.plan import PlanningProblem
from llmpq.planner_client import PlannerClient, local_planner


@dataclass(frozen=True)
class Questions:
    """What to ask.

    Attributes:
        strategy: How to plan; `all` compares.
        is_explained: What limits the plan and what would change it.
        is_pareto: Throughput against quality.
        picture: Where to draw the comparison or the Pareto front, if anywhere.
        planner: host:port of a running planner; empty for one of the call's own.
    """

    strategy: str
    is_explained: bool
    is_pareto: bool
    picture: Path | None
    planner: str

    def check(self) -> None:
        """Refuses what cannot be answered, before minutes of work; raises typer.BadParameter."""
        if self.picture and self.picture.suffix != ".svg":
            raise typer.BadParameter(f"'{self.picture}' has to end in .svg.")

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[PlannerClient]:
        """The planner to ask."""
        if self.planner:
            async with PlannerClient(self.planner) as planner:
                yield planner
            return
        async with local_planner() as address, PlannerClient(address) as planner:
            yield planner


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


async def ask(planner: PlannerClient, problem: PlanningProblem, questions: Questions) -> Answers:
    """Asks the planner about a problem; raises as `PlannerClient`."""
    strategy = questions.strategy
    explanation = await planner.explain(problem) if questions.is_explained else None
    trade = tuple(await planner.trade_quality(problem)) if questions.is_pareto else ()
    if explanation and strategy != "all":
        results = [StrategyResult(explanation.plan.strategy, explanation.plan, simulation=explanation.simulation)]
    else:
        results = await planner.compare(problem, () if strategy == "all" else (strategy,))
    return Answers(problem, results, explanation, trade)


def present(answers: Answers, described: dict[str, Any], picture: Path | None, *, as_json: bool) -> None:
    """Shows the answers; exits with 1 if no strategy found a plan.

    Args:
        answers: What the planner said.
        described: What was planned for, as plain values.
        picture: Where to draw, if anywhere.
        as_json: Print one document and nothing else.
    """
    if as_json:
        print_json(described | _document(answers))
    else:
        _show(answers)
    if picture:
        drawn = trade_picture(answers.trade) if answers.trade else comparison_picture(answers.results)
        picture.write_text(drawn, encoding="utf-8")
        note(f"Drawn to {picture}.")
    if not any(result.estimate for result in answers.results):
        raise typer.Exit(1)


def _show(answers: Answers) -> None:
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


def _document(answers: Answers) -> dict[str, Any]:
    document: dict[str, Any] = {"plans": [result_entry(result, answers.problem.options) for result in answers.results]}
    if answers.explanation:
        document["explanation"] = explanation_entry(answers.explanation)
    if answers.trade:
        document["pareto"] = [trade_entry(point) for point in answers.trade]
    return document
