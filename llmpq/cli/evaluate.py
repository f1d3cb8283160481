"""`llmpq eval ppl`: the perplexity of the weights that the mesh serves."""

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from llmpq.batch import Batch, Result
from llmpq.cli import options
from llmpq.cli.collect import collect
from llmpq.cli.connection import MeshChoice, model_path
from llmpq.cli.terminal import print_json, stdout
from llmpq.errors import InternalError, InvalidInputError
from llmpq.model import ModelFiles
from llmpq.plan import PlanOptions
from llmpq.report import batch_report
from llmpq.schemes import DEFAULT_GROUP_SIZE


def perplexity(
    *,
    model: Annotated[str, typer.Option(help="A Hugging Face directory or a .gguf file.")],
    text: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Plain text, UTF-8.")],
    tokens: Annotated[int, typer.Option(min=2, help="Use this many tokens, from the start of the text.")] = 20_480,
    window: Annotated[int, typer.Option(min=2, help="Tokens of context; windows do not overlap.")] = 1024,
    coordinator: options.Coordinator = "",
    stages: options.Stages = None,
    scheme: options.Scheme = "",
    group: options.Group = None,
    quality_weight: options.QualityWeight = None,
    quality_budget: options.QualityBudget = None,
    as_json: options.Json = False,
) -> None:
    """Measure perplexity through the mesh: what the precisions cost.

    The text is cut into windows without overlap and without special tokens;
    every token of a window but the first is scored given those before it.

    [bold]Examples[/bold]

      llmpq eval ppl --model m.gguf --text wikitext.txt --scheme w16 --stages 2
      llmpq eval ppl --model m.gguf --text wikitext.txt --scheme w4 --tokens 4096

    [bold]JSON keys[/bold]: perplexity, tokens, scored_tokens, window, scheme (null if
    planned), group, and those of `run-batch` without output and errors.
    """
    mesh = MeshChoice.of_flags(coordinator, stages)
    plan_options = options.plan_options(
        is_local=mesh.is_local,
        scheme=scheme,
        group=group,
        quality_weight=quality_weight,
        quality_budget=quality_budget,
    )
    token_ids = _tokenize(model, text)[:tokens]
    windows = _windows(token_ids, window)
    batch, logprobs = asyncio.run(_score(mesh, model_path(model), windows, plan_options))
    document = {
        "perplexity": math.exp(-math.fsum(logprobs) / len(logprobs)),
        "tokens": len(token_ids),
        "scored_tokens": len(logprobs),
        "window": window,
        "scheme": scheme or None,
        "group": DEFAULT_GROUP_SIZE if group is None else group,
    }
    if as_json:
        print_json(document | batch_report(batch))
    else:
        precision = scheme or "planned precisions"
        stdout.print(f"perplexity {document['perplexity']:.4f} over {len(token_ids):,} tokens, {precision}")


def _tokenize(model: str, text: Path) -> list[int]:
    from transformers import AutoTokenizer  # noqa: PLC0415 takes seconds, and no other command needs it
    from transformers.utils import logging  # noqa: PLC0415

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it warns that the text is longer than the context, which is the point
    files = ModelFiles.locate(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**files.from_pretrained)
    except (OSError, ValueError, KeyError) as error:
        place = f"a vocabulary in {files.gguf}" if files.gguf else "tokenizer.json or tokenizer.model in the directory"
        raise InvalidInputError(f"No tokenizer of the model at '{model}': expected {place}.", subject=model) from error
    token_ids: list[int] = tokenizer(_content(text), add_special_tokens=False)["input_ids"]
    return token_ids


def _content(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{text}: not UTF-8, at byte {error.start:,}.", subject=str(text)) from error


def _windows(token_ids: Sequence[int], window: int) -> list[Sequence[int]]:
    """Cuts tokens into windows; a last one of a single token has nothing to score and is left out."""
    windows = [token_ids[start : start + window] for start in range(0, len(token_ids), window)]
    windows = [tokens for tokens in windows if len(tokens) > 1]
    if not windows:
        raise InvalidInputError("The text has fewer than two tokens.", subject="text")
    return windows


async def _score(
    mesh: MeshChoice,
    model: str,
    windows: Sequence[Sequence[int]],
    plan_options: PlanOptions,
) -> tuple[Batch, list[float]]:
    """Runs the windows as a batch; returns it and the log-probability of every scored token."""
    logprobs: list[float] = []
    async with mesh.connect() as client:
        batch = await client.submit(_requests(windows), model=model, plan_options=plan_options)
        batch = await collect(client, batch.batch_id, lambda result: logprobs.extend(_logprobs(result)))
    num_scored = sum(len(tokens) - 1 for tokens in windows)
    if len(logprobs) != num_scored:
        raise InternalError(f"Batch {batch.batch_id} {batch.state.label}: {batch.status_message}")
    return batch, logprobs


def _requests(windows: Sequence[Sequence[int]]) -> Iterator[dict[str, Any]]:
    """One completions request a window that generates nothing and echoes the prompt with its log-probabilities."""
    for number, tokens in enumerate(windows):
        body = {"prompt": list(tokens), "echo": True, "logprobs": 0, "max_tokens": 0}
        yield {"custom_id": f"window-{number}", "method": "POST", "url": "/v1/completions", "body": body}


def _logprobs(result: Result) -> list[float]:
    record = json.loads(result.json)
    if result.is_error:
        raise InternalError(f"{result.custom_id} was not scored: {record['error']['message']}")
    # The first token has none: nothing stands before it.
    logprobs: list[float] = record["response"]["body"]["choices"][0]["logprobs"]["token_logprobs"][1:]
    return logprobs
