"""`llmpq eval ppl`: the perplexity of the weights that the mesh serves."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from llmpq.cli import options
from llmpq.cli.connection import MeshChoice, model_path
from llmpq.cli.eval_requests import ask, logprobs_of, scoring_request, served_precisions
from llmpq.cli.eval_text import encoder, first_tokens, text_pieces
from llmpq.cli.terminal import print_json, stdout
from llmpq.errors import InvalidInputError
from llmpq.report import batch_report
from llmpq.tokenizer import load_tokenizer


def perplexity(
    *,
    model: Annotated[str, typer.Option(help="A Hugging Face directory or a .gguf file.")],
    text: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="Plain text, UTF-8; or a .jsonl file of objects with `text`."),
    ],
    tokens: Annotated[int, typer.Option(min=2, help="Use this many tokens, from the start of the text.")] = 20_480,
    window: Annotated[int, typer.Option(min=2, help="Tokens of context; windows do not overlap.")] = 1024,
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
    """Measure perplexity through the mesh: what the precisions cost.

    The text is cut into windows without overlap and without special tokens;
    every token of a window but the first is scored given those before it. The
    documents of a .jsonl file are joined by blank lines before they are cut.

    [bold]Examples[/bold]

      llmpq eval ppl --model m.gguf --text wikitext.txt --scheme w16 --stages 2
      llmpq eval ppl --model m.gguf --text wikitext.txt --precisions w8*15,w4*15
      llmpq eval ppl --model m.gguf --text c4.jsonl --precisions plan.json

    [bold]JSON keys[/bold]: perplexity, tokens, scored_tokens, window, scheme (null
    if planned or given layer by layer), group, rounding, symmetric, int8_kv_cache,
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
    token_ids = first_tokens(encoder(load_tokenizer(model)), text_pieces(text), tokens)
    requests = [scoring_request(f"window-{number}", part) for number, part in enumerate(_windows(token_ids, window))]
    batch, choices = asyncio.run(ask(mesh, model_path(model), requests, plan_options))
    logprobs = [logprob for choice in choices.values() for logprob in logprobs_of(choice)]
    document = {
        "perplexity": math.exp(-math.fsum(logprobs) / len(logprobs)),
        "tokens": len(token_ids),
        "scored_tokens": len(logprobs),
        "window": window,
        **options.described(plan_options, scheme),
        "precisions": served_precisions(batch),
    }
    if as_json:
        print_json(document | batch_report(batch))
    else:
        served = ", ".join(f"{name} x{count}" for name, count in served_precisions(batch).items())
        stdout.print(f"perplexity {document['perplexity']:.4f} over {len(token_ids):,} tokens, {served}")


def _windows(token_ids: Sequence[int], window: int) -> list[Sequence[int]]:
    """Cuts tokens into windows; a last one of a single token has nothing to score and is left out."""
    windows = [token_ids[start : start + window] for start in range(0, len(token_ids), window)]
    windows = [tokens for tokens in windows if len(tokens) > 1]
    if not windows:
        raise InvalidInputError("The text has fewer than two tokens.", subject="text")
    return windows
