"""A checkpoint with the int8 scheme that vLLM multiplies fastest on a CPU, made of an unquantized one once."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

#: compressed-tensors' description: int8 per output channel, activations rounded to int8 per token as they come.
_W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def rounded_to_int8(model: str, cache: str) -> str:
    """The directory of a model at W8A8, made under `cache` if it is not there; `model` is an unquantized directory."""
    directory = Path(cache) / "vllm-w8a8"
    if not directory.exists():
        unfinished = directory.with_suffix(".part")
        shutil.copytree(model, unfinished, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
        for file in Path(model).glob("*.safetensors"):
            save_file(_rounded(load_file(file)), unfinished / file.name, metadata={"format": "pt"})
        config = json.loads((unfinished / "config.json").read_text())
        (unfinished / "config.json").write_text(json.dumps(config | {"quantization_config": _W8A8}, indent=1))
        unfinished.rename(directory)
    return str(directory)


def _rounded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Projections of layers rounded to nearest, symmetrically, per output channel; the rest as it is."""
    rounded = {}
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            scale = weight.float().abs().amax(1, keepdim=True) / 127
            rounded[name] = (weight.float() / scale).round().to(torch.int8)
            rounded[f"{name}_scale"] = scale
        else:
            rounded[name] = weight
    return rounded
