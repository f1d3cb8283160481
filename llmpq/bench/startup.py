"""How long a command takes to its first token, on a host that does not know the model yet and on one that does."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmpq.cache_dir import CACHE_VARIABLE
from llmpq.errors import UnavailableError

#: How long a command may take.
_MAX_S = 600.0
_POLL_S = 0.005
_REQUEST = {
    "custom_id": "first",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"prompt": "The capital of France is", "max_tokens": 1, "temperature": 0},
}


@dataclass(frozen=True)
class Startup:
    """Seconds from the command to the first token.

    Attributes:
        first_s: With an empty cache: devices are measured, kernels chosen, weights rounded.
        second_s: With the cache that the first run left.
    """

    first_s: float
    second_s: float


def time_startup(run_batch_flags: Sequence[str]) -> Startup:
    """Runs `llmpq run-batch` with these flags twice, on one request for one token, with a cache of its own.

    Raises:
        UnavailableError: It ended without an answer; quotes what it said.
    """
    with tempfile.TemporaryDirectory(prefix="llmpq-startup-") as directory:
        place = Path(directory)
        (place / "in.jsonl").write_text(json.dumps(_REQUEST) + "\n", encoding="utf-8")
        environment = os.environ | {CACHE_VARIABLE: str(place / "cache")}
        return Startup(*(_first_token_s(place / str(run), run_batch_flags, environment) for run in (1, 2)))


def _first_token_s(place: Path, run_batch_flags: Sequence[str], environment: dict[str, str]) -> float:
    """Seconds until the first answer, which is one token, stands in the file that the command writes."""
    place.mkdir()
    files = ["-i", str(place.parent / "in.jsonl"), "-o", str(place / "out.jsonl")]
    command = [sys.executable, "-m", "llmpq.cli", "run-batch", *files, *run_batch_flags]
    started = time.perf_counter()
    with (place.parent / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603 our own
        try:
            while not any(file.stat().st_size for file in place.glob("out*")):
                if process.poll() is not None or time.perf_counter() - started > _MAX_S:
                    log.seek(0)
                    raise UnavailableError(f"llmpq run-batch gave no answer: {log.read().strip()}", subject="run-batch")
                time.sleep(_POLL_S)
            return time.perf_counter() - started
        finally:
            process.wait()
