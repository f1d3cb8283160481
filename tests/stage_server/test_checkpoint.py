"""Checkpoints give each tensor by name, from wherever it lies, and say which one is missing."""

import json
from pathlib import Path

import pytest
import torch
from parity_models import SaveModel
from safetensors.torch import load_file, save_file

from llmpq.errors import InvalidInputError, NotFoundError
from stage_server.checkpoint import open_checkpoint
from stage_server.loader import ModelLoader

CPU = torch.device("cpu")


def shard(directory: str) -> dict[str, torch.Tensor]:
    """Splits a saved model into two files with an index; returns its tensors."""
    path = Path(directory) / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file_name = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, Path(directory) / file_name)
        weight_map |= dict.fromkeys(part, file_name)
    (Path(directory) / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def test_index_is_honoured(save_model: SaveModel) -> None:
    """Tensors of a checkpoint in several files are found through its index."""
    directory, _ = save_model("opt")
    tensors = shard(directory)

    checkpoint = open_checkpoint(directory)

    for name, tensor in tensors.items():
        assert checkpoint.has(name)
        assert torch.equal(checkpoint.tensor(name), tensor)


def test_missing_tensor_is_named(save_model: SaveModel) -> None:
    """Loading a layer whose tensor is missing says which tensor and where."""
    directory, _ = save_model("opt")
    path = Path(directory) / "model.safetensors"
    tensors = load_file(path)
    lost = "model.decoder.layers.1.fc2.weight"
    del tensors[lost]
    save_file(tensors, path)

    loader = ModelLoader(directory, CPU, torch.float32)

    loader.read_layer(0)
    with pytest.raises(NotFoundError, match=lost):
        loader.read_layer(1)


def test_directory_without_weights_is_refused(save_model: SaveModel) -> None:
    """A directory with a configuration but no weights is named."""
    directory, _ = save_model("opt")
    (Path(directory) / "model.safetensors").unlink()

    with pytest.raises(NotFoundError, match=r"model\.safetensors"):
        ModelLoader(directory, CPU, torch.float32)


def test_unknown_family_lists_the_known_ones(tmp_path: Path) -> None:
    """A model of a family that is not known is refused with the list of those that are."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))

    with pytest.raises(InvalidInputError, match="llama, opt"):
        ModelLoader(str(tmp_path), CPU, torch.float32)
