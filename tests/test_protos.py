"""The committed generated code is what the pinned generator makes of the protos."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GENERATORS = ("grpcio-tools", "mypy-protobuf")


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    """Generating again changes nothing, so nobody edits the generated code or forgets `make protos`."""
    _require_pinned_generators()
    names = sorted(str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos").glob("llmpq/v1/*.proto"))
    outputs = ("--python_out", "--grpc_python_out", "--mypy_out")
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I", "protos"),
            *(f"{output}={tmp_path}" for output in outputs),
            f"--mypy_grpc_out=only_async:{tmp_path}",
            *names,
        ],
        cwd=ROOT,
        env={"PATH": str(Path(sys.executable).parent)},
        check=True,
    )

    made = {path.name: path.read_text() for path in (tmp_path / "llmpq/v1").iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "llmpq/v1").glob("*_pb2*")}
    stale = sorted(name for name in made.keys() | committed.keys() if made.get(name) != committed.get(name))
    assert not stale, "run `make protos`"


def _require_pinned_generators() -> None:
    """Skips where the environment has other generators than pyproject.toml pins: their output differs."""
    development = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    pins = dict(
        re.fullmatch(r"([\w-]+)==([\w.]+)", line).groups() for line in development if line.startswith(GENERATORS)
    )  # type: ignore[union-attr]
    for generator in GENERATORS:
        if version(generator) != pins[generator]:
            pytest.skip(f"{generator} {version(generator)} is installed, {pins[generator]} is pinned")
