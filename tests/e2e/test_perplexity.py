"""Perplexity of the served weights, measured through the mesh by the command that users have."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(600)
def test_two_stages_at_w16_have_the_perplexity_of_the_model(smollm2: str, wikitext_head: Path) -> None:
    """SmolLM2 over two stages scores WikiText-2 as it does undivided in float32: 23.23."""
    flags = ("--model", smollm2, "--text", str(wikitext_head), "--stages", "2", "--scheme", "w16")
    sizes = ("--tokens", "20480", "--window", "1024", "--json")
    command = (sys.executable, "-m", "llmpq.cli", "eval", "ppl", *flags, *sizes)

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["perplexity"] == pytest.approx(23.23, abs=0.03)
    assert (report["tokens"], report["scheme"]) == (20480, "w16")
