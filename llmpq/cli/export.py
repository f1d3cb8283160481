"""`llmpq export`: a model as a checkpoint that other software loads."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
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
    symmetric: Annotated[
        bool,
        typer.Option(
            "--symmetric/--asymmetric",
            help="Round w4 and w3 around zero, which every reader of the format loads; or with zero points, as a mesh "
            "does by itself: see docs/quantization.md.",
        ),
    ] = True,
    device: Annotated[str, typer.Option(help="That rounds and calibrates: cpu or cuda:N.")] = "cpu",
    as_json: options.Json = False,
) -> None:
    r"""Write a model as a compressed-tensors checkpoint, for transformers and vLLM.

    It holds the weights that a mesh with --symmetric would serve, bit for bit,
    also of a plan that was made without; with --asymmetric, those of a mesh
    without. Only w8a8 differs: a mesh rotates its inputs, an export does not.
    A model that is quantized already is written as it is stored and needs no
    precision; one at w16 becomes an ordinary directory. No mesh is
    needed, nor started.

    [bold]Examples[/bold]

      llmpq export --model m.gguf -o m-w4 --scheme w4 --rounding gptq
      llmpq export --model m.gguf -o m-mixed --precisions plan.json

    [bold]JSON keys[/bold]: output, layers (a list of scheme, group_size), total_bytes,
    has_zero_points, has_tokenizer.
    """
    asked = options.plan_options(is_local=True, scheme=scheme, precisions=precisions, group=group, rounding=rounding)
    request = {
        "model": model_path(model),
        "output": str(output),
        "device": device,
        "options": asdict(replace(asked, rounding=replace(asked.rounding, is_symmetric=symmetric))),
    }
    report = _run(request)
    if as_json:
        print_json(report)
        return
    counts = precision_counts([from_fields(LayerPrecision, layer) for layer in report["layers"]])
    layers = ", ".join(f"{count} layers at {name}" for name, count in counts.items())
    stdout.print(f"{output}: {layers}, {format_bytes(report['total_bytes'])}", soft_wrap=True)
    if report["has_zero_points"]:
        note("It has zero points, which not every compressed-tensors loads: see docs/quantization.md on --asymmetric.")
    if not report["has_tokenizer"]:
        note("The model came without a tokenizer that could be written; put its files beside the weights.")


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Exports in a process of its own, as all that computes with weights does; its progress and errors are shown."""
    command = [sys.executable, "-m", "llmpq.child", str(os.getpid()), "stage_server.export"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 our own
        try:
            output, _ = process.communicate(json.dumps(request))
        except BaseException:
            process.terminate()  # and not kill: it removes what is half written
            raise
    if process.returncode:
        raise typer.Exit(process.returncode)
    report: dict[str, Any] = json.loads(output)
    return report
