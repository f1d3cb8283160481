"""What is exported is served by a mesh as what it was exported from."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mesh import Mesh, completion

from llmpq import BatchState, PlanOptions
from llmpq.plan import Rounding

ROUNDING = Rounding("gptq", is_symmetric=True)


def export(*flags: str) -> subprocess.CompletedProcess[str]:
    """Runs `llmpq export`."""
    return subprocess.run(
        [sys.executable, "-m", "llmpq.cli", "export", *flags], capture_output=True, text=True, check=False
    )


def test_an_exported_plan_gives_the_answers_of_the_plan(two_stages: Mesh, opt_bytes: str, tmp_path: Path) -> None:
    """Two stages answer from an exported checkpoint, at its mixed precisions, as from the model that they round."""
    flags = ("--group", "32", "--rounding", "gptq", "--symmetric", "--json")
    exported = export("--model", opt_bytes, "-o", str(tmp_path / "out"), "--precisions", "w4*4,w8*2,w3*2", *flags)
    assert exported.returncode == 0, exported.stderr
    report: dict[str, Any] = json.loads(exported.stdout)
    schemes = tuple(layer["scheme"] for layer in report["layers"])
    lines = [completion(f"r{n}", "The capital of France is"[: 4 + 5 * n], 24) for n in range(4)]
    asked = PlanOptions(layer_schemes=schemes, group_size=32, rounding=ROUNDING, use_all_devices=True)

    rounded = two_stages.run(lines, model=opt_bytes, plan_options=asked)
    stored = two_stages.run(lines, model=report["output"], plan_options=PlanOptions(use_all_devices=True))

    assert stored.batch.state is BatchState.COMPLETED, stored.batch.status_message
    assert [layer.scheme for stage in stored.batch.plan.stages for layer in stage.layers] == list(schemes)
    assert stored.texts == rounded.texts


def test_an_export_that_cannot_be_says_why(opt_bytes: str, tmp_path: Path) -> None:
    """The command ends with status 1 and one line; nothing is written."""
    done = export("--model", opt_bytes, "-o", str(tmp_path / "out"))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: The model at")
    assert "no precision is given" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
