"""`llmpq eval tasks`: how often the served weights choose the right continuation."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmpq.cli import options
from llmpq.cli.connection import MeshChoice, model_path
from llmpq.cli.eval_requests import Choices, ask, greedy_request, logprobs_of, scoring_request, served_precisions
from llmpq.cli.eval_text import encoder
from llmpq.cli.tables import score_table
from llmpq.cli.task_file import Continuation, LastWord, MultipleChoice, TaskItem, read_tasks
from llmpq.cli.task_scores import ItemScore, choice_score, task_score
from llmpq.cli.terminal import print_json, stdout
from llmpq.report import batch_report
from llmpq.tokenizer import load_tokenizer

#: Token ids to text.
Decode = Callable[[Sequence[int]], str]


def tasks(
    *,
    model: Annotated[str, typer.Option(help="A Hugging Face directory or a .gguf file.")],
    task_file: Annotated[Path, typer.Option("--tasks", exists=True, dir_okay=False, help="Items, as JSON lines.")],
    coordinator: options.Coordinator = "",
    stages: options.Stages = None,
    scheme: options.Scheme = "",
    precisions: options.Precisions = "",
    group: options.Group = None,
    rounding: options.RoundingMethod = "",
    symmetric: options.Symmetric = False,
    int8_kv_cache: options.Int8KvCache = False,
    int8_activations: options.Int8Activations = False,
    quality_weight: options.QualityWeight = None,
    quality_budget: options.QualityBudget = None,
    as_json: options.Json = False,
) -> None:
    r"""Score multiple-choice and last-word tasks through the mesh.

    Each line of the file is one item:

      {"task": T, "context": C, "choices": [A, B], "answer": 0}
      {"task": T, "text": "... whose last word is to be foretold"}

    A choice is right if it is the most likely one (acc; acc_norm by likelihood
    per character), a last word if the greedy continuation is that word.

    [bold]Examples[/bold]

      llmpq eval tasks --model m.gguf --tasks examples/tasks.jsonl --scheme w4
      llmpq eval tasks --model m.gguf --tasks t.jsonl --precisions w8*15,w4*15

    [bold]JSON keys[/bold]: tasks (a list of task, kind, items, acc, acc_stderr,
    acc_norm, acc_norm_stderr, perplexity, samples), scheme (null if planned
    or given layer by layer), group, rounding, symmetric, int8_kv_cache,
    int8_activations, precisions (layers of each scheme), and those of
    `run-batch` without output and errors.
    """
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
        quality_weight=quality_weight,
        quality_budget=quality_budget,
    )
    mesh.check_layers(plan_options, model)
    tokenizer = load_tokenizer(model)
    items_of = read_tasks(task_file, encoder(tokenizer))
    requests = [request for items in items_of.values() for item in items for request in _requests(item)]
    batch, choices = asyncio.run(ask(mesh, model_path(model), requests, plan_options))
    scores = [
        task_score(task, items, [_score(item, choices, _decoder(tokenizer)) for item in items])
        for task, items in items_of.items()
    ]
    if as_json:
        described = {**options.described(plan_options, scheme), "precisions": served_precisions(batch)}
        print_json({"tasks": [asdict(score) for score in scores], **described, **batch_report(batch)})
    else:
        stdout.print(score_table(scores, served_precisions(batch)))


def _requests(item: TaskItem) -> Iterator[dict[str, Any]]:
    """A scoring request for each continuation, and for a last word also what the model says there."""
    for number, continuation in enumerate(item.continuations):
        yield scoring_request(_scored_id(item, number), continuation.tokens)
    if isinstance(item.item, LastWord):
        (continuation,) = item.continuations
        context = continuation.tokens[: continuation.num_context]
        yield greedy_request(_said_id(item), context, continuation.num_scored)


def _score(item: TaskItem, choices: Choices, decode: Decode) -> ItemScore:
    logprobs = [
        math.fsum(logprobs_of(choices[_scored_id(item, number)])[continuation.num_context - 1 :])
        for number, continuation in enumerate(item.continuations)
    ]
    if isinstance(item.item, MultipleChoice):
        return choice_score(item.line, item.item, logprobs)
    is_said = choices[_said_id(item)]["text"] == _expected_text(item.continuations[0], decode)
    return ItemScore(item.line, tuple(logprobs), is_right=is_said)


def _expected_text(continuation: Continuation, decode: Decode) -> str:
    """What a completion that has the tokens of the continuation reads like; alone, they could lose their space."""
    return decode(continuation.tokens)[len(decode(continuation.tokens[: continuation.num_context])) :]


def _decoder(tokenizer: Any) -> Decode:
    return lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def _scored_id(item: TaskItem, number: int) -> str:
    return f"line {item.line}, continuation {number}"


def _said_id(item: TaskItem) -> str:
    return f"line {item.line}, completion"
