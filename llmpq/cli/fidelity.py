"""`llmpq fidelity`."""

import asyncio
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import typer

from llmpq.cli import options
from llmpq.cli.collect import collect
from llmpq.cli.connection import MeshChoice, model_path
from llmpq.cli.eval_text import encoder, shipped_text
from llmpq.cli.progress import StatusLines
from llmpq.cli.tables import plain_table
from llmpq.cli.terminal import print_json, stdout
from llmpq.client import Client
from llmpq.errors import UnavailableError
from llmpq.fidelity import FidelityResult
from llmpq.model import ModelShape, read_shape
from llmpq.plan import PlanOptions
from llmpq.schemes import SCHEMES
from llmpq.tokenizer import load_tokenizer

#: Requests of drawn batches: some seconds of work, because starting is a part of short ones and waits for the host.
_REQUESTS = (8, 16, 24, 32, 48)
#: Prompt and new tokens of a drawn batch, in all.
_MAX_PROMPT_TOKENS, _MAX_NEW_TOKENS = 8000, 2000


@dataclass(frozen=True)
class RunResult:
    """A whole batch, predicted and measured."""

    requests: int
    prompt_tokens: int
    new_tokens: int
    stages: tuple[dict[str, Any], ...]
    prefill_micro_batch: int
    decode_micro_batch: int
    lanes: int
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1


def fidelity(
    *,
    model: Annotated[str, typer.Option(help="A Hugging Face directory or a .gguf file.")],
    coordinator: options.Coordinator = "",
    stages: options.Stages = None,
    workloads: Annotated[int, typer.Option(min=0, max=1000, help="Random workloads for each device.")] = 10,
    runs: Annotated[int, typer.Option(min=0, help="Whole batches under random plans.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="What is drawn depends on this alone.")] = 0,
    scheme: options.Scheme = "",
    group: options.Group = None,
    output: options.DocumentFile = None,
    as_json: options.Json = False,
) -> None:
    """Show how well the planner predicts, on work that was never profiled.

    Each workload is a random slice of the model at random precisions on one
    device, with random micro-batches, while the CPUs on other cores of its
    host are kept busy; each run is a whole batch under a random plan. Stages
    hold nothing afterwards. Measure on idle devices.

    [bold]Examples[/bold]

      llmpq fidelity --model m.gguf --coordinator host:50051
      llmpq fidelity --model m.gguf --stages 2 --workloads 20 --runs 0 --json

    [bold]JSON keys[/bold]: model, seed, summary (errors are shares), workloads, runs.
    """
    mesh = MeshChoice.of_flags(coordinator, stages)
    given = options.plan_options(is_local=mesh.is_local, scheme=scheme, group=group)
    slices, batches = asyncio.run(
        _measure(mesh, model_path(model), given, num_workloads=workloads, num_runs=runs, seed=seed)
    )
    document = describe(model, seed, slices, batches)
    if output is not None:
        output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(document)
    else:
        _show(slices, batches, document["summary"])


def describe(model: str, seed: int, slices: Sequence[FidelityResult], batches: Sequence[RunResult]) -> dict[str, Any]:
    """Results as a document; an error is |predicted / measured - 1|."""
    return {
        "model": model,
        "seed": seed,
        "summary": {
            "prefill": _spread(_prefill_errors(slices)),
            "decode": _spread(_decode_errors(slices)),
            "layers": _spread([*_prefill_errors(slices), *_decode_errors(slices)]),
            "memory": _spread(
                result.predicted_bytes / result.measured_bytes - 1 for result in slices if result.measured_bytes
            ),
            "runs": _spread(batch.error for batch in batches),
        },
        "workloads": [asdict(result) for result in slices],
        "runs": [asdict(batch) for batch in batches],
    }


def _prefill_errors(slices: Iterable[FidelityResult]) -> list[float]:
    return [result.predicted_prefill_ms / result.measured_prefill_ms - 1 for result in slices]


def _decode_errors(slices: Iterable[FidelityResult]) -> list[float]:
    return [result.predicted_decode_ms / result.measured_decode_ms - 1 for result in slices]


def _spread(errors: Iterable[float]) -> dict[str, float]:
    """Mean of the absolute errors, the worst of them, and the mean with its sign; empty without errors."""
    found = list(errors)
    if not found:
        return {}
    sizes = [abs(error) for error in found]
    return {"count": len(found), "mean": sum(sizes) / len(sizes), "worst": max(sizes), "bias": sum(found) / len(found)}


async def _measure(
    mesh: MeshChoice, model: str, plan_options: PlanOptions, *, num_workloads: int, num_runs: int, seed: int
) -> tuple[list[FidelityResult], list[RunResult]]:
    status = StatusLines()
    async with mesh.connect() as client:
        await client.profile_devices(model, plan_options=plan_options, on_status=status.say)
        measuring = client.measure_fidelity(
            model, num_workloads, plan_options=plan_options, seed=seed, on_status=status.say
        )
        slices = [result async for result in measuring] if num_workloads else []
        schemes = [name for name in SCHEMES if name in await _common_schemes(client, plan_options)]
        shape = await asyncio.to_thread(read_shape, model)
        words = await asyncio.to_thread(_tokens_of_text, model) if num_runs else []
        batches = [
            await _run(client, model, _draw_run(source, shape, schemes, words), plan_options)
            for source in (random.Random(f"{seed} {number}") for number in range(num_runs))  # noqa: S311 no secret
        ]
    return slices, batches


async def _common_schemes(client: Client, plan_options: PlanOptions) -> set[str]:
    """Schemes that every device can run, of those that are allowed."""
    members = (await client.cluster()).stages
    common = set.intersection(*(set(member.description.schemes) for member in members))
    return common & set(plan_options.allowed_schemes or common)


@dataclass(frozen=True)
class _DrawnRun:
    """A batch of equal prompts (token ids), and options for it that leave only the split to the planner."""

    prompts: list[list[int]]
    new_tokens: int
    layer_schemes: tuple[str, ...]
    prefill_micro_batch: int
    num_lanes: int


def _tokens_of_text(model: str) -> list[int]:
    """Of plain text: how long the head looks for the most likely token depends on how sure the model is."""
    return encoder(load_tokenizer(model))(shipped_text())


def _draw_run(source: random.Random, shape: ModelShape, schemes: list[str], words: list[int]) -> _DrawnRun:
    requests = source.choice(_REQUESTS)
    prompt_tokens = min(source.randint(16, 256), _MAX_PROMPT_TOKENS // requests, shape.max_positions // 2)
    new_tokens = min(source.randint(8, 64), _MAX_NEW_TOKENS // requests, shape.max_positions // 2)
    chosen = source.sample(schemes, source.randint(1, min(2, len(schemes))))
    begins = [source.randrange(len(words) - prompt_tokens) for _ in range(requests)]
    return _DrawnRun(
        [words[begin : begin + prompt_tokens] for begin in begins],
        new_tokens,
        layer_schemes=tuple(source.choice(chosen) for _ in range(shape.num_layers)),
        prefill_micro_batch=source.choice((1, 2, 4)),
        num_lanes=source.choice((1, 2, 3)),
    )


async def _run(client: Client, model: str, run: _DrawnRun, plan_options: PlanOptions) -> RunResult:
    drawn = replace(
        plan_options,
        allowed_schemes=(),
        layer_schemes=run.layer_schemes,
        prefill_micro_batch=run.prefill_micro_batch,
        num_lanes=run.num_lanes,
        use_all_devices=True,
    )
    body = {"max_tokens": run.new_tokens, "temperature": 0}
    lines = [
        {"custom_id": str(row), "method": "POST", "url": "/v1/completions", "body": {"prompt": prompt} | body}
        for row, prompt in enumerate(run.prompts)
    ]
    batch = await client.submit(lines, model=model, plan_options=drawn, ignore_stop=True)
    ended = await collect(client, batch.batch_id, lambda _: None)
    if ended.plan is None or not ended.running_s:
        raise UnavailableError(f"The batch {ended.state.label}: {ended.status_message}", subject=batch.batch_id)
    return RunResult(
        requests=len(run.prompts),
        prompt_tokens=len(run.prompts[0]),
        new_tokens=run.new_tokens,
        stages=tuple(
            {
                "device_id": planned.device_id,
                "layers": len(planned.layers),
                "predicted_prefill_ms": measured.predicted_prefill_ms,
                "measured_prefill_ms": measured.measured_prefill_ms,
                "predicted_decode_ms": measured.predicted_decode_ms,
                "measured_decode_ms": measured.measured_decode_ms,
                "busy_ratio": measured.busy_ratio,
            }
            for planned, measured in zip(ended.plan.stages, ended.stages, strict=True)
        ),
        prefill_micro_batch=ended.plan.prefill_micro_batch,
        decode_micro_batch=ended.plan.decode_micro_batch,
        lanes=ended.plan.num_lanes,
        predicted_s=ended.plan.estimate.total_s,
        measured_s=ended.running_s,
    )


def _show(slices: Sequence[FidelityResult], batches: Sequence[RunResult], summary: dict[str, dict[str, float]]) -> None:
    if slices:
        table = plain_table(
            "slices: predicted -> measured, per micro-batch",
            ("device", "layers", "schemes", "prompts", "prefill ms", "decode ms", "memory MB"),
        )
        for result in slices:
            schemes = "+".join(name for name in SCHEMES if name in result.schemes)
            ends = "".join(
                mark for mark, is_there in (("E", not result.first_layer), ("H", result.has_head)) if is_there
            )
            table.add_row(
                result.device_id,
                f"{len(result.schemes)} {ends}".strip(),
                schemes,
                f"{result.prefill_sequences} of {result.decode_sequences} x {result.prompt_tokens}",
                _compared(result.predicted_prefill_ms, result.measured_prefill_ms),
                _compared(result.predicted_decode_ms, result.measured_decode_ms),
                _compared(result.predicted_bytes / 1e6, result.measured_bytes / 1e6),
            )
        stdout.print(table)
    if batches:
        table = plain_table(
            "runs: predicted -> measured", ("requests", "tokens", "eta x, xi x lanes", "layers", "seconds")
        )
        for batch in batches:
            table.add_row(
                str(batch.requests),
                f"{batch.prompt_tokens} + {batch.new_tokens}",
                f"{batch.prefill_micro_batch}, {batch.decode_micro_batch} x {batch.lanes}",
                "+".join(str(stage["layers"]) for stage in batch.stages),
                _compared(batch.predicted_s, batch.measured_s),
            )
        stdout.print(table)
    for name, found in summary.items():
        if found:
            figures = f"{found['mean']:.1%} (worst {found['worst']:.1%}, bias {found['bias']:+.1%}) of {found['count']}"
            stdout.print(f"{name}: mean absolute error {figures}")


def _compared(predicted: float, measured: float) -> str:
    error = f" {predicted / measured - 1:+.0%}" if measured else ""
    return f"{predicted:.2f} -> {measured:.2f}{error}"
