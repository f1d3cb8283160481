"""How long a stage takes to load all layers of a model, the first time and again, and what memory of the host.

    python benchmarks/loading.py --model build/models/SmolLM2-135M-Instruct.Q4_1.gguf --scheme w4 --rounding gptq

Each load is a process of its own, and the model's files are out of the page cache before it. `seconds` are those of the
load itself, without starting; `peak` is the most by which resident memory grew, `weights` what is held in the end.
`reading` and `rounding` are the seconds that these take one after the other, each alone: as a load does both at the
same time, it takes less than their sum. All as JSON.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from coordinator.calibration import calibration_samples
from llmpq.cache_dir import CACHE_VARIABLE
from llmpq.model import ModelFiles
from llmpq.plan import LayerPrecision, Rounding
from llmpq.stage_load import StageLoad, TokenSequence
from stage_server.config import StageConfig
from stage_server.device import ComputeDevice, open_device
from stage_server.layer_rounding import rounded_layer
from stage_server.loader import ModelLoader
from stage_server.slice_loading import SliceLoad


def main() -> None:
    """Loads twice and takes the parts apart, or is one of the processes that do so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--scheme", default="w4")
    parser.add_argument("--rounding", default="nearest")
    parser.add_argument("--child", choices=["load", "parts"], help=argparse.SUPPRESS)
    settings = parser.parse_args()
    torch.set_grad_enabled(False)
    if settings.child:
        measured = (load if settings.child == "load" else parts)(settings.model, settings.scheme, settings.rounding)
        json.dump(measured, sys.stdout)
        return
    with tempfile.TemporaryDirectory() as cache:
        figures: dict[str, object] = {"first": child(cache, "load"), "again": child(cache, "load")}
        if settings.rounding == "nearest":
            figures["parts"] = child(cache, "parts")
    asked = {"model": settings.model, "scheme": settings.scheme, "rounding": settings.rounding}
    json.dump(asked | figures, sys.stdout, indent=2)


def child(cache: str, what: str) -> dict[str, float]:
    """What a process with the same arguments measures."""
    command = [sys.executable, *sys.argv, "--child", what]
    done = subprocess.run(command, env=os.environ | {CACHE_VARIABLE: cache}, stdout=subprocess.PIPE, check=True)  # noqa: S603 ourselves
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def load(model: str, scheme: str, rounding: str) -> dict[str, float]:
    """A load as a stage between two others does it: all layers, neither embedding nor head."""
    device, loader = opened(model)
    samples = tuple(TokenSequence(tuple(ids)) for ids in calibration_samples(model)) if rounding == "gptq" else ()
    layers = (LayerPrecision(scheme),) * loader.spec.num_layers
    asked = StageLoad("", "", model, 1, 3, 0, layers, 1, 8, 8, "", Rounding(rounding), samples)
    before = start_peak()
    started = time.monotonic()
    for progress in SliceLoad(loader, device, asked).steps():
        weights = progress.memory.layer_bytes if progress.memory else 0
    seconds = time.monotonic() - started
    return {"seconds": seconds, "peak": resident("VmHWM") - before, "weights": weights}


def parts(model: str, scheme: str, rounding: str) -> dict[str, float]:
    """Seconds of reading everything, then of rounding and building everything."""
    _, loader = opened(model)
    precision = LayerPrecision(scheme)
    started = time.monotonic()
    layers = [loader.source.layer(index) for index in range(loader.spec.num_layers)]
    read = time.monotonic()
    for layer in layers:
        loader.build_layer(rounded_layer(loader, layer, precision, Rounding(rounding)), precision)
    return {"reading": read - started, "rounding": time.monotonic() - read}


def opened(model: str) -> tuple[ComputeDevice, ModelLoader]:
    """A device and a loader, with the model's files out of the page cache."""
    device = open_device(StageConfig())
    files = ModelFiles.locate(model)
    for path in [files.directory / files.gguf] if files.gguf else files.directory.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return device, ModelLoader(model, device.torch_device, device.compute_dtype)


def start_peak() -> int:
    """Bytes that are resident now; the peak starts there (Linux, proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
