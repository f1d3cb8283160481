"""Measures what the catalog's virtual CPUs stand on: a decoder layer of two models on one core, held to a class.

    python benchmarks/measure_cpu_class.py --cpu-class avx2 --core 0 -o avx2.json
    python benchmarks/fit_rates.py avx2.json

Points come in several passes; the shortest time of each counts.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stage_server.cpu_class import CPU_CLASSES, restrict_cpu

#: Enough that their weights do not all stay in the last cache.
NUM_LAYERS = 8

#: Shapes to measure: SmolLM2-135M's and TinyLlama-1.1B's layer. The vocabulary does not matter to a layer.
SHAPES = {
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "tinyllama-1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
}


def main() -> None:
    """Writes the points of all shapes and schemes as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu-class", choices=tuple(CPU_CLASSES), required=True)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    restrict_cpu(arguments.cpu_class, (arguments.core,))  # before torch is imported
    points = []
    for model, sizes in SHAPES.items():
        for point in _profile(sizes, arguments.cpu_class, arguments.core):
            print(
                model, point.scheme, point.phase, point.num_sequences, point.num_tokens, point.duration_ns, flush=True
            )
            points.append({"model": model, **asdict(point)})
    arguments.output.write_text(json.dumps({"device": f"cpu-{arguments.cpu_class}", "points": points}, indent=1))


def _profile(sizes: dict[str, int], cpu_class: str, core: int) -> Iterator[Any]:
    import torch  # noqa: PLC0415 the class must be set before
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    from llmpq.device import ModelPart  # noqa: PLC0415
    from llmpq.profile_request import ProfileRequest  # noqa: PLC0415
    from stage_server.config import StageConfig  # noqa: PLC0415
    from stage_server.device import open_device  # noqa: PLC0415
    from stage_server.loader import ModelLoader  # noqa: PLC0415
    from stage_server.profiler import LayerProfiler  # noqa: PLC0415

    torch.set_grad_enabled(False)
    device = open_device(StageConfig(device="cpu", cpu_class=cpu_class, cores=(core,)))
    with TemporaryDirectory() as directory:
        config = LlamaConfig(**sizes, num_hidden_layers=NUM_LAYERS, vocab_size=512, max_position_embeddings=2048)
        LlamaForCausalLM(config).half().save_pretrained(directory)
        loader = ModelLoader(directory, device.torch_device, device.compute_dtype)
        profiler = LayerProfiler(loader, device, ProfileRequest(directory, device.description.schemes, 64))
        shortest: dict[Any, Any] = {}
        for point in profiler.points():
            if point.part is ModelPart.LAYER:
                size = replace(point, duration_ns=0)
                shortest[size] = min(point, shortest.get(size, point), key=lambda measured: measured.duration_ns)
        yield from shortest.values()


if __name__ == "__main__":
    main()
