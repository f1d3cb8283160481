"""Which of several ways to multiply is the fastest for how many rows: measured on this device, then remembered.

A choice is made for a device, a kind of weight and a shape, once per host: it is kept on disk (`choice_cache`), so only
the first process that builds such a layer spends the time.
"""

import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from quantizer.choice_cache import recall, remember

#: A way to multiply: maps x (rows, in) to (rows, out).
Forward = Callable[[torch.Tensor], torch.Tensor]

#: Numbers of rows that are measured. What is found for one holds down to the one before, and the last for all above.
ROW_BUCKETS = tuple(2**exponent for exponent in range(10))

#: A path that has been the fastest and is now slower than the fastest by this factor will not come back: what serves
#: few rows better loses more the more rows there are. Saves measuring where it takes long.
_BEATEN = 1.5
#: A path is run so often, or until so many seconds are spent on it; the shortest run counts, being the least disturbed.
_MAX_RUNS, _ENOUGH_S = 5, 0.005


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

    def seconds(rows: int, names: Sequence[str]) -> dict[str, float]:
        x = torch.randn(rows, shape[1], device=device).to(dtype)
        return {name: _shortest_run(paths[name], x) for name in names}

    choice = find_fastest(names, seconds)
    remember(key, choice.fastest)
    return choice


def find_fastest(names: Sequence[str], seconds: Callable[[int, Sequence[str]], Mapping[str, float]]) -> Choice:
    """Finds the fastest path for each of `ROW_BUCKETS`, leaving out those that few rows have shown to be beaten.

    Args:
        names: Of the paths.
        seconds: Measures some of the paths at a number of rows.
    """
    candidates = list(names)
    fastest: list[str] = []
    for rows in ROW_BUCKETS:
        if len(candidates) > 1:
            measured = seconds(rows, candidates)
            best = min(candidates, key=measured.__getitem__)
            candidates = [
                name for name in candidates if name not in fastest or measured[name] <= _BEATEN * measured[best]
            ]
            fastest.append(best)
        else:
            fastest.append(candidates[0])
    return Choice(tuple(fastest))


def device_identity(device: torch.device) -> str:
    """What a device is, as far as it decides which kernel is fast."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    return f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def cpu_name() -> str:
    """The model of this host's CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()


def _shortest_run(forward: Forward, x: torch.Tensor) -> float:
    """Seconds of the shortest of several runs; the first, which may compile or warm up, does not count."""
    _timed(forward, x)
    runs: list[float] = []
    while len(runs) < _MAX_RUNS and sum(runs) < _ENOUGH_S:
        runs.append(_timed(forward, x))
    return min(runs)


def _timed(forward: Forward, x: torch.Tensor) -> float:
    _synchronize(x.device)
    started = time.perf_counter()
    forward(x)
    _synchronize(x.device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
