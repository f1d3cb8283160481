"""Loads all layers of a model in a process of its own, and says what memory that took by the operating system.

    python loading_child.py SMALL MODEL SCHEME

Prints JSON with `peak`, the bytes by which the resident memory of the process was larger at its largest than before,
and `weights`, the bytes of the layers that are loaded. The small model is loaded first, so that code and threads that
any load needs are there already.
"""

import json
import re
import sys
from pathlib import Path

import torch

from llmpq.plan import LayerPrecision
from llmpq.stage_load import StageLoad
from stage_server.config import StageConfig
from stage_server.device import open_device
from stage_server.loader import ModelLoader
from stage_server.slice_loading import SliceLoad


def main() -> None:
    """Loads, measures and prints."""
    small, model, scheme = sys.argv[1:]
    torch.set_num_threads(1)
    load(small, scheme)
    forget_peak()
    before = resident("VmRSS")
    held = load(model, scheme)
    sys.stdout.write(json.dumps({"peak": resident("VmHWM") - before, "weights": held}))


def load(model: str, scheme: str) -> int:
    """Loads the layers as a middle stage has them, without embedding and head; returns their bytes."""
    device = open_device(StageConfig())
    loader = ModelLoader(model, device.torch_device, device.compute_dtype)
    layers = (LayerPrecision(scheme),) * loader.spec.num_layers
    slice_load = SliceLoad(loader, device, StageLoad("d", "p", model, 1, 3, 0, layers, 1, 8, 8, ""))
    memory = [progress.memory for progress in slice_load.steps()]
    return memory[-1].layer_bytes if memory[-1] else 0


def forget_peak() -> None:
    """Makes what is resident now the peak (Linux, proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
