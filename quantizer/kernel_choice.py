"""Which of several ways to multiply is the fastest for how many rows: measured on this device, then remembered.

A choice is made for a device, a kind of weight and a shape, once per host: it is kept on disk (`choice_cache`), so only
the first process that builds such a layer spends the time.
"""

import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from quantizer.choice_cache import recall, remember
from quantizer.native.build import library_path
from quantizer.native.library import kernels
from quantizer.path_timing import Forward, time_paths

#: Numbers of rows that a path can be chosen for: up to each one, and more than the one before. More are like the last.
ROW_BUCKETS = tuple(2**exponent for exponent in range(13))

#: Multiplications beyond which a number of rows is not tried, but taken to be like the most that are: they take long.
_MAX_PRODUCTS = {"cpu": 2**31, "cuda": 2**40}
#: Measuring all paths of a layer ends after so many seconds, however few numbers of rows have been tried: a host that
#: is busy with other things must not take minutes to load.
_MAX_CHOICE_S = 0.5


@dataclass(frozen=True)
class Choice:
    """The fastest path of each of `ROW_BUCKETS`, by name."""

    fastest: tuple[str, ...]

    def path(self, num_rows: int) -> str:
        """The path for a number of rows."""
        bucket = max(num_rows - 1, 0).bit_length()
        return self.fastest[min(bucket, len(self.fastest) - 1)]


def choose(
    kind: str, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, paths: Mapping[str, Forward]
) -> Choice:
    """The fastest of the paths for each number of rows: remembered, or else measured now (some ms).

    Args:
        kind: What tells this kind of weight from others of the same shape, such as "w4 group 64".
        shape: (out, in) of the weight.
        device: That it is multiplied on.
        dtype: Of the inputs.
        paths: Name to forward; all compute the same, up to the order in which floats are summed.
    """
    names = tuple(paths)
    if len(names) == 1:
        return Choice(names)
    key = {
        "device": device_identity(device),
        "torch": torch.__version__,
        "kind": kind,
        "shape": f"{shape[0]} x {shape[1]}",
        "dtype": str(dtype),
        "paths": ", ".join(names),
        "rows": ", ".join(map(str, ROW_BUCKETS)),
    }
    remembered = recall(key)
    if remembered is not None and len(remembered) == len(ROW_BUCKETS) and set(remembered) <= set(names):
        return Choice(remembered)

    deadline = time.monotonic() + _MAX_CHOICE_S

    def measure(num_rows: int) -> Mapping[str, float]:
        return time_paths(paths, torch.randn(num_rows, shape[1], device=device).to(dtype))

    max_rows = _MAX_PRODUCTS[device.type] // (shape[0] * shape[1])
    choice = find_fastest(measure, max_rows, lambda: time.monotonic() < deadline)
    remember(key, choice.fastest)
    return choice


def find_fastest(measure: Callable[[int], Mapping[str, float]], max_rows: int, has_time: Callable[[], bool]) -> Choice:
    """Finds the fastest path for each of `ROW_BUCKETS`, trying only as many as tell where one gives way to another.

    What is fastest at two numbers of rows is so at all numbers between.

    Args:
        measure: Seconds of each path at a number of rows.
        max_rows: More are not tried, but one row is.
        has_time: Whether to go on refining; one row and the most rows are always tried.
    """
    fastest = [""] * len(ROW_BUCKETS)

    def try_bucket(bucket: int) -> None:
        seconds = measure(ROW_BUCKETS[bucket])
        fastest[bucket] = min(seconds, key=seconds.__getitem__)

    def fill_between(low: int, high: int) -> None:
        if high - low < 2:  # noqa: PLR2004 nothing is between
            return
        if fastest[low] == fastest[high] or not has_time():
            fastest[low + 1 : high] = [fastest[low]] * (high - low - 1)
            return
        middle = (low + high) // 2
        try_bucket(middle)
        fill_between(low, middle)
        fill_between(middle, high)

    last = max((bucket for bucket, rows in enumerate(ROW_BUCKETS) if rows <= max_rows), default=0)
    try_bucket(0)
    try_bucket(last)
    fill_between(0, last)
    fastest[last + 1 :] = [fastest[last]] * (len(fastest) - last - 1)
    return Choice(tuple(fastest))


def device_identity(device: torch.device) -> str:
    """What a device is, as far as it decides which kernel is fast."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    native = kernels()
    facts = (
        cpu_name(),
        f"torch for {torch.backends.cpu.get_cpu_capability()}",
        f"oneDNN up to {os.environ.get('ONEDNN_MAX_CPU_ISA', 'all')}",
        f"{library_path().stem} for {native.instruction_set}" if native is not None else "no native kernels",
        f"{torch.get_num_threads()} threads",
    )
    return ", ".join(facts)


def cpu_name() -> str:
    """The model of this host's CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()
