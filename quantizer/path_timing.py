"""How long each of several ways to multiply takes, on the device of the inputs."""

import importlib.util
import time
from collections.abc import Callable, Mapping

import torch

#: A way to multiply: maps x (rows, in) to (rows, out).
Forward = Callable[[torch.Tensor], torch.Tensor]

#: Runs of each path on a CPU, at least and at most; between that, until so many seconds have passed for each.
_MIN_RUNS, _MAX_RUNS, _ENOUGH_S = 2, 7, 0.01
#: Milliseconds for which each path is run on a CUDA device.
_CUDA_MS = 5


def time_paths(paths: Mapping[str, Forward], x: torch.Tensor) -> dict[str, float]:
    """Seconds of a run of each path, after one that does not count."""
    for path in paths.values():
        path(x)
    if x.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        return {name: _time_on_cuda(path, x) for name, path in paths.items()}
    return _shortest_runs(paths, x)


def _time_on_cuda(path: Forward, x: torch.Tensor) -> float:
    """By the device's own clock, with weights in memory rather than in its cache: as layers find theirs in a model."""
    from triton.testing import do_bench  # noqa: PLC0415 there is no Triton where there is no CUDA

    milliseconds: float = do_bench(lambda: path(x), warmup=1, rep=_CUDA_MS, return_mode="median")
    return milliseconds / 1e3


def _shortest_runs(paths: Mapping[str, Forward], x: torch.Tensor) -> dict[str, float]:
    """The shortest run of each is the least disturbed. Paths take turns, so that what disturbs one disturbs all."""
    rounds: list[list[float]] = []
    while len(rounds) < _MIN_RUNS or (len(rounds) < _MAX_RUNS and sum(map(sum, rounds)) < _ENOUGH_S * len(paths)):
        rounds.append([_seconds(path, x) for path in paths.values()])
    return dict(zip(paths, map(min, zip(*rounds, strict=True)), strict=True))


def _seconds(path: Forward, x: torch.Tensor) -> float:
    _synchronize(x.device)
    started = time.perf_counter()
    path(x)
    _synchronize(x.device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
