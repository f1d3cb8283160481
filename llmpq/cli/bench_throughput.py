"""`llmpq bench throughput`."""

import asyncio
from pathlib import Path
from signal import SIGTERM
from typing import Annotated, Any

import typer
from rich.table import Table

from llmpq.bench.comparison import Comparison
from llmpq.bench.machine import describe_machine
from llmpq.bench.model_files import bench_files
from llmpq.bench.peer_system import PEERS_VARIABLE, PeerChoice, installed_peers
from llmpq.bench.picture import Bar
from llmpq.bench.workload import equal_lengths, sharegpt_lengths
from llmpq.cli import bench_output
from llmpq.cli.bench_output import figure, figure_table, publish
from llmpq.cli.eval_text import encoder, read_text, shipped_text
from llmpq.cli.options import known_scheme
from llmpq.cli.terminal import note
from llmpq.model import read_shape
from llmpq.tokenizer import load_tokenizer

#: Tokens of a window that perplexity is measured over, if the model's context has so many.
_WINDOW = 1024


def throughput(
    *,
    model: Annotated[str, typer.Option(help="A .gguf file (which llama.cpp needs) or a Hugging Face directory.")],
    scheme: Annotated[list[str], typer.Option(help="Of every layer of our mesh; repeat it to compare.")] = ["w8a8"],  # noqa: B006 typer's way
    stages: Annotated[list[int], typer.Option(help="Stage servers of our mesh; repeat it to compare.")] = [2],  # noqa: B006 typer's way
    int8_kv_cache: Annotated[
        bool, typer.Option("--int8-kv-cache", help="Measure our mesh also with keys and values in 8 bits.")
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare with this: transformers, vllm-w8a8, vllm-fp32, llamacpp-q4_0, llamacpp-rpc-q8_0, or none. "
            "Repeat it. All that are installed by default."
        ),
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(envvar=PEERS_VARIABLE, file_okay=False, help="Directory of environments named vllm and llamacpp."),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a run.")] = 32,
    prompt_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    gen_len: Annotated[int, typer.Option(min=1, help="Tokens of each answer, whatever the model says.")] = 64,
    lengths: Annotated[
        str, typer.Option(metavar="sharegpt", help="Lengths of real conversations, and answers that end by themselves.")
    ] = "",
    runs: Annotated[int, typer.Option(min=0, help="Turns of each system; figures are medians.")] = 5,
    phases: Annotated[
        bool, typer.Option("--phases", help="Also time the prompts alone: a rate for each phase.")
    ] = False,
    quality_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens to measure perplexity on; 0 is not at all.")
    ] = 4096,
    text: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Text instead of the head of WikiText-2.")
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add to the runs that are in the --json file already.")] = False,
    json_file: bench_output.JsonFile = "",
    picture: bench_output.Picture = None,
) -> None:
    """Tokens per second of a local mesh beside other systems, on the same work.

    All systems hold the model and take turns on this machine's cores, after a
    warm-up; loading is not counted, and who waits computes nothing. Every run
    answers the same token ids greedily. Perplexity is measured on the same
    text in windows of 1024 tokens, by each system's own probabilities.

    Peers other than transformers are not installed with llmpq: make each an
    environment in the --peers directory (docs/performance.md).

    [bold]Examples[/bold]

      llmpq bench throughput --model m.gguf
      llmpq bench throughput --model m.gguf --stages 2 --stages 1 --peer none
      llmpq bench throughput --model m.gguf --lengths sharegpt --requests 200

    [bold]JSON keys[/bold]: machine, model, workload, text (perplexity's: tokens,
    window), systems: name, settings, version, tokens_per_s, wall_s (seconds),
    prefill_tokens_per_s, decode_tokens_per_s, tail_ratio (rate over the last 5 %
    of the time over the mean rate), job_s (with planning and loading), ratio (how
    many times faster the first system is, median over turns), perplexity, runs.
    """
    for name in scheme:
        known_scheme(name)
    if lengths not in {"", "sharegpt"}:
        raise typer.BadParameter("Only sharegpt is known.", param_hint="--lengths")
    if add and json_file in {"", "-"}:
        raise typer.BadParameter("--add needs the --json file to add to.")
    choices = _peers(peer, peers)
    found = bench_files(model)
    tokenizer = load_tokenizer(model)
    words = encoder(tokenizer)(_text(text))
    max_positions = read_shape(model).max_positions
    if lengths:
        workload = sharegpt_lengths(words, requests, [tokenizer.eos_token_id], max_positions)
    else:
        workload = equal_lengths(words, requests, prompt_len, gen_len)
    window = min(_WINDOW, max_positions)
    scored = words[:quality_tokens]
    windows = [scored[at : at + window] for at in range(0, len(scored), window)]
    document = {
        "machine": describe_machine(),
        "model": str(found.source),
        "workload": workload.name,
        "text": {"tokens": len(scored), "window": window},
    }
    comparison = Comparison(document, Path(json_file) if json_file not in {"", "-"} else None, note)
    if add:
        comparison.take_up(Path(json_file))
    caches = (True, False) if int8_kv_cache else (False,)
    meshes = [(name, count, is_int8) for is_int8 in caches for name in scheme for count in stages]
    try:
        asyncio.run(comparison.measure(found, meshes, choices, (workload, windows), runs, has_phases=phases))
    except asyncio.CancelledError:
        raise typer.Exit(128 + SIGTERM) from None
    title = f"{workload.name} tokens, {found.source.name}"
    measured = comparison.document
    publish(measured, _table(title, measured), _bars(measured), title=title, json_file=json_file, picture=picture)


def _peers(names: list[str] | None, directory: Path | None) -> list[PeerChoice]:
    """The chosen peers; those that are installed unless some are named."""
    if names is None:
        return installed_peers(directory)
    return [PeerChoice.of_name(name, directory) for name in names if name != "none"]


def _text(path: Path | None) -> str:
    return read_text(path) if path else shipped_text()


def _table(title: str, document: dict[str, Any]) -> Table:
    rows = (
        (
            system["name"],
            figure(system["tokens_per_s"]),
            figure(system["wall_s"], 2),
            figure(system["prefill_tokens_per_s"]),
            figure(system["decode_tokens_per_s"]),
            figure(system["ratio"], 2),
            figure(system["perplexity"], 3),
            str(system["num_runs"]),
        )
        for system in document["systems"]
    )
    columns = ("system", "tokens/s", "wall s", "prefill/s", "decode/s", "ratio", "perplexity", "runs")
    return figure_table(f"{title}; ratio: how many times faster the first is", columns, rows)


def _bars(document: dict[str, Any]) -> list[Bar]:
    bars = []
    for system in document["systems"]:
        note = f"{figure(system['tokens_per_s'])} tokens/s, perplexity {figure(system['perplexity'], 2)}"
        bars.append(Bar(system["name"], system["tokens_per_s"] or 0, note, is_ours=system["name"].startswith("llmpq")))
    return bars
