"""Rounded layers on disk."""

from pathlib import Path

import pytest
import torch
from parity_models import SaveModel

from llmpq.plan import NEAREST, LayerPrecision
from stage_server.layer_file import read_layer, write_layer
from stage_server.layer_rounding import rounded_layer
from stage_server.loader import ModelLoader


@pytest.mark.parametrize("scheme", ["w8", "w8a8", "w4", "w3"])
def test_a_rounded_layer_comes_back_as_it_was_written(save_model: SaveModel, tmp_path: Path, scheme: str) -> None:
    """Every tensor and setting of its linears, also that some of them are rotated and some cannot be."""
    loader = ModelLoader(save_model("llama-gqa-untied")[0], torch.device("cpu"), torch.float32)
    layer = rounded_layer(loader, loader.source.layer(1).as_floats(), LayerPrecision(scheme, 32), NEAREST)
    path = tmp_path / "layer.safetensors"
    write_layer(layer, path)
    read = read_layer(path)
    assert (read.index, read.stored_at) == (layer.index, layer.stored_at)
    for role, linear in layer.linears.items():
        written, back = vars(linear.stored), vars(read.linears[role].stored)
        assert written.keys() == back.keys()
        for name, value in written.items():
            same = torch.equal(value, back[name]) if isinstance(value, torch.Tensor) else value == back[name]
            assert same, (role, name)
    rotated = {role for role, linear in layer.linears.items() if vars(linear.stored).get("is_rotated")}
    assert rotated == ({"qkv", "attention_out", "ffn_in"} if scheme == "w8a8" else set())
