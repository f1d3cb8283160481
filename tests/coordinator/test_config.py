"""Settings that cannot be."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coordinator.config import CoordinatorConfig
from llmpq.errors import InvalidInputError


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"lease_ttl_s": 0}, "--lease-ttl"),
        ({"lease_ttl_s": -1.0}, "--lease-ttl"),
        ({"lease_ttl_s": float("nan")}, "--lease-ttl"),
        ({"lease_ttl_s": float("inf")}, "--lease-ttl"),
        ({"max_queued_requests": 0}, "--max-queued-requests"),
        ({"planner": "here"}, "--planner"),
        ({"planner": ":1"}, "--planner"),
        ({"advertise": "here"}, "--advertise"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_flag(settings: dict[str, Any], flag: str) -> None:
    """A coordinator that could not work does not start, and says which flag is wrong."""
    with pytest.raises(InvalidInputError, match=flag):
        CoordinatorConfig(**({"planner": "here:1", "state": Path()} | settings))


def test_the_process_says_so_in_one_line(tmp_path: Path) -> None:
    """A wrong setting ends the process with code 2 and one line."""
    flags = ("--planner", "here", "--state", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "coordinator", *flags], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--planner" in done.stderr


def test_threads_may_read_models_at_the_same_time(opt_bytes: str, tmp_path: Path) -> None:
    """Lazy packages cannot be imported by two threads at a time, so they take turns where nothing is kept yet."""
    program = (
        "import sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from coordinator.tokenizing import ModelTokenizer\n"
        "from llmpq.model import read_shape\n"
        "from llmpq.stored_layers import read_stored_layers\n"
        "with ThreadPoolExecutor(3) as pool:\n"
        "    reads = (read_shape, ModelTokenizer.load, read_stored_layers)\n"
        "    [each.result() for each in [pool.submit(read, sys.argv[1]) for read in reads]]\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LLMPQ_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, opt_bytes],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )

    assert done.returncode == 0, done.stderr
