"""The script that checks and times the kernels on a GPU, as far as it goes without one."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_kernels.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("gpu_kernels", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _timing(scheme: str, rows: int, copy_share: float = 0.0, cublas_ratio: float = 0.0) -> Any:
    return SimpleNamespace(scheme=scheme, rows=rows, copy_share=copy_share, cublas_ratio=cublas_ratio)


def test_a_target_is_as_good_as_the_worst_size(script: ModuleType) -> None:
    """One slow size misses a target; sizes and schemes that it is not about have no say."""
    timings = [
        _timing("w4", 1, copy_share=0.9),
        _timing("w3", 16, copy_share=0.65),
        _timing("w4", 64, copy_share=0.1),
        _timing("w8a8", 1, copy_share=0.1),
        _timing("w4", 2048, cublas_ratio=0.8),
        _timing("w8a8", 2048, cublas_ratio=1.4),
        _timing("w8a8 per token", 2048, cublas_ratio=0.1),
    ]
    reached = {(target.schemes, target.last_rows): value for target, value in script.judge(timings)}
    assert reached == {(("w8", "w4", "w3"), 16): 0.65, (("w4", "w3"), 2048): 0.8, (("w8a8",), 2048): 1.4}


def test_what_was_not_measured_is_not_judged(script: ModuleType) -> None:
    """A target without timings is left out, neither reached nor missed."""
    assert script.judge([_timing("cublas", 1)]) == []


def test_verdicts_name_value_and_target(script: ModuleType) -> None:
    """A line says what was reached and what was asked for."""
    few_rows, many_rows, _ = script.TARGETS
    assert script.describe(few_rows, 0.65).startswith("MISSED: w8, w4, w3 at 1 to 16 rows: 0.65 of a copy's bandwidth")
    assert script.describe(many_rows, 0.75).startswith("reached: w4, w3 at 2048 rows: 0.75 times cuBLAS's speed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so() -> None:
    """It ends with a sentence and exit code 1, and measures nothing."""
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("There is no CUDA device")
    assert not done.stdout
