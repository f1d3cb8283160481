"""A CPU stage is held to an instruction set and to cores, or refused with what there is."""

import os
import subprocess
import sys

import pytest

from stage_server.cpu_class import available_cpu_classes

PROBE = """
import os
from stage_server.cpu_class import restrict_cpu
restrict_cpu({cpu_class!r}, ({core},))
import torch
print(torch.backends.cpu.get_cpu_capability(), len(os.sched_getaffinity(0)), torch.get_num_threads())
"""

CAPABILITY = {"avx512": "AVX512", "avx2": "AVX2", "sse4": "DEFAULT"}


@pytest.mark.parametrize("cpu_class", available_cpu_classes())
def test_class_and_cores_hold_for_the_process(cpu_class: str) -> None:
    """After the restriction torch computes with the class's kernels, on one core and one thread."""
    core = min(os.sched_getaffinity(0))
    probe = PROBE.format(cpu_class=cpu_class, core=core)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)

    assert done.stdout.split() == [CAPABILITY[cpu_class], "1", "1"]


def start(*flags: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m stage_server` to its end."""
    command = [sys.executable, "-m", "stage_server", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--cores", "4095"), "4095"),
        (("--cores", "x"), "not a list of cores"),
        (("--memory-budget", "-3"), "not a size"),
        (("--device", "cuda:63"), "cuda:63 is not there"),
        (("--device", "tpu"), "neither cpu nor cuda:N"),
        (("--listen", "nowhere"), "HOST:PORT"),
    ],
)
def test_bad_flags_end_the_process_with_one_clear_line(flags: tuple[str, ...], says: str) -> None:
    """A flag that cannot be honoured ends the process with code 2 and a sentence, not a traceback."""
    done = start(*flags)

    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
