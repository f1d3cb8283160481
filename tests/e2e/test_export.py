"""What is exported is served by a mesh as what it was exported from."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mesh import Mesh, completion
from transformers import AutoModelForCausalLM

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
    flags = ("--group", "32", "--rounding", "gptq", "--json")
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


@pytest.mark.parametrize("flags", [("--scheme", "w4"), ("--precisions", "w4*4,w3*4", "--rounding", "hqq")], ids=str)
def test_transformers_loads_what_the_plain_command_writes(
    opt_bytes: str, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Without a word on zero points an export loads by from_pretrained alone, and the model knows its text."""
    done = export("--model", opt_bytes, "-o", str(tmp_path / "out"), "--group", "32", *flags)
    assert done.returncode == 0, done.stderr
    tokens = torch.tensor([list(b"The capital of France is")])

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    original = AutoModelForCausalLM.from_pretrained(opt_bytes, dtype=torch.float32).eval()

    with torch.no_grad():
        got, exact = loaded(tokens).logits, original(tokens).logits
    assert not torch.equal(got, exact)
    assert torch.cosine_similarity(got.flatten(), exact.flatten(), dim=0) > 0.9  # noise would be near 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=str)
def test_an_export_that_is_stopped_leaves_nothing(opt_bytes: str, tmp_path: Path, number: signal.Signals) -> None:
    """However the command ends, its worker ends too, and removes what is half written."""
    output = tmp_path / "out"
    flags = ("--model", opt_bytes, "-o", str(output), "--scheme", "w4", "--group", "32", "--rounding", "gptq")
    command = [sys.executable, "-m", "llmpq.cli", "export", *flags]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: any(output.glob(".unfinished-*")))
        worker = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        os.kill(process.pid, number)

    wait_until(lambda: not Path(f"/proc/{worker}").exists())
    assert process.returncode
    assert not output.exists()


def wait_until(is_so: Callable[[], bool]) -> None:
    """Waits; fails after some minutes, for this process may be stopped meanwhile."""
    deadline = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
