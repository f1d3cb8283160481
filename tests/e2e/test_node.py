"""The contract from another language."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from mesh import Mesh

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "node"
#: A copy with its packages; as deep in the tree as the example, which finds the .proto files relative to itself.
INSTALLED = ROOT / "build" / "node"


@pytest.fixture(scope="module")
def node_example() -> Path:
    """The Node example with its packages."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("Node.js is not installed")
    manifest = (EXAMPLE / "package.json").read_text()
    stamp = INSTALLED / "installed.json"
    INSTALLED.mkdir(parents=True, exist_ok=True)
    shutil.copytree(EXAMPLE, INSTALLED, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    if not stamp.is_file() or stamp.read_text() != manifest:
        install = ("npm", "install", "--no-fund", "--no-audit", "--no-package-lock")
        subprocess.run(install, cwd=INSTALLED, check=True, timeout=240)
        stamp.write_text(manifest)
    return INSTALLED / "batch.js"


def test_a_batch_from_node(two_stages: Mesh, stories260k: str, node_example: Path) -> None:
    """Node.js submits a batch, watches it to its end and gets every answer, from the .proto files alone."""
    prompts = ("Once upon a time", "Lily has a dog")
    command = ("node", node_example, two_stages.coordinator.address, stories260k, *prompts)

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr
    answers = {line["custom_id"]: line["response"]["body"] for line in map(json.loads, done.stdout.splitlines())}
    assert set(answers) == {"prompt-1", "prompt-2"}
    assert all(body["choices"][0]["text"] for body in answers.values())
    assert "BATCH_STATE_COMPLETED 2/2 requests" in done.stderr.splitlines()[-1]
