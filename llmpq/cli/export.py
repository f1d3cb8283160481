"""`llmpq export`: a model as a checkpoint that other software loads."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmpq.cli import options
from llmpq.cli.connection import model_path
from llmpq.cli.terminal import note, print_json, stdout
from llmpq.messages import from_fields
from llmpq.plan import LayerPrecision
from llmpq.report import precision_counts
from llmpq.units import format_bytes


def export(
    *,
    model: Annotated[str, typer.Option(help="A Hugging Face directory, a .gguf file, or org/name on the Hub.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; must not exist, or be empty.")],
    scheme: options.Scheme = "",
    precisions: options.Precisions = "",
    group: options.Group = None,
    rounding: options.RoundingMethod = "",
    symmetric: options.Symmetric = False,
    device: Annotated[str, typer.Option(help="That rounds and calibrates: cpu or cuda:N.")] = "cpu",
    as_json: options.Json = False,
) -> None:
    r"""Write a model as a compressed-tensors checkpoint, for transformers and vLLM.

    It holds the weights that the mesh would serve, bit for bit. A model that is
    quantized already is written as it is stored and needs no precision; one at
    w16 becomes an ordinary directory. No mesh is needed, nor started.

    [bold]Examples[/bold]

      llmpq export --model m.gguf -o m-w4 --scheme w4 --rounding gptq
      llmpq export --model m.gguf -o m-mixed --precisions plan.json

    [bold]JSON keys[/bold]: output, layers (a list of scheme, group_size), total_bytes,
    has_zero_points, has_tokenizer.
    """
    request = {
        "model": model_path(model),
        "output": str(output),
        "device": device,
        "options": asdict(
            options.plan_options(
                is_local=True,
                scheme=scheme,
                precisions=precisions,
                group=group,
                rounding=rounding,
                symmetric=symmetric,
            )
        ),
    }
    report = _run(request)
    if as_json:
        print_json(report)
        return
    counts = precision_counts([from_fields(LayerPrecision, layer) for layer in report["layers"]])
    layers = ", ".join(f"{count} layers at {name}" for name, count in counts.items())
    stdout.print(f"{output}: {layers}, {format_bytes(report['total_bytes'])}", soft_wrap=True)
    if report["has_zero_points"]:
        note("It has zero points, which not every compressed-tensors loads: see docs/quantization.md on --symmetric.")
    if not report["has_tokenizer"]:
        note("The model came without a tokenizer that could be written; put its files beside the weights.")


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Exports in a process of its own, as all that computes with weights does; its progress and errors are shown."""
    command = [sys.executable, "-m", "stage_server.export"]
    done = subprocess.run(command, input=json.dumps(request), stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 our own
    if done.returncode:
        raise typer.Exit(done.returncode)
    report: dict[str, Any] = json.loads(done.stdout)
    return report
