"""A model in the forms that systems read: as it was given, and as a directory with unquantized weights."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from llmpq.cache_dir import cache_directory
from llmpq.errors import InvalidInputError
from llmpq.model import ModelFiles
from llmpq.plan import PlanOptions


@dataclass(frozen=True)
class BenchFiles:
    """Where the forms of a model are.

    Attributes:
        source: As the user named it.
        directory: Unquantized, with tokenizer; for transformers and what reads its format.
        gguf: As a .gguf file; empty if it is none.
        made: A directory for what else is made of it.
    """

    source: Path
    directory: Path
    gguf: str
    made: Path


def bench_files(model: str) -> BenchFiles:
    """Finds the forms of a model; makes what is missing once, in the cache.

    A .gguf file is written as a directory with 16-bit weights by `llmpq export`: transformers and vLLM then compute on
    the same values as we do.

    Raises:
        NotFoundError: There is no such model.
        InvalidInputError: It cannot be written as a directory.
    """
    files = ModelFiles.locate(model)
    made = cache_directory() / "bench" / files.fingerprint
    made.mkdir(parents=True, exist_ok=True)
    source = Path(model).resolve()
    if not files.gguf:
        return BenchFiles(source, source, "", made)
    directory = made / "unquantized"
    if not directory.exists():
        _export(source, directory)
    return BenchFiles(source, directory, str(source), made)


def _export(source: Path, directory: Path) -> None:
    unfinished = directory.with_suffix(".part")
    options = asdict(PlanOptions(allowed_schemes=("w16",)))
    request = {"model": str(source), "output": str(unfinished), "device": "cpu", "options": options}
    command = [sys.executable, "-m", "stage_server.export"]
    done = subprocess.run(command, input=json.dumps(request), text=True, capture_output=True, check=False)  # noqa: S603 our own
    if done.returncode:
        raise InvalidInputError(f"{source} cannot be written unquantized: {done.stderr.strip()}", subject=str(source))
    unfinished.rename(directory)
