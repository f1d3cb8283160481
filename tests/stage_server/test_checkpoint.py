"""Checkpoints give each tensor by name, from wherever it lies, and say which one is missing."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from full_disk import largest_file
from parity_models import SaveModel
from safetensors.torch import load_file, save_file

from llmpq.errors import InvalidInputError, NotFoundError
from llmpq.model import read_shape
from stage_server.checkpoint import open_checkpoint
from stage_server.loader import ModelLoader
from stage_server.lru_directory import LruDirectory
from stage_server.safetensors_writer import write_safetensors

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

    loader.source.layer(0)
    with pytest.raises(NotFoundError, match=lost):
        loader.source.layer(1)


def test_directory_without_weights_is_refused(save_model: SaveModel) -> None:
    """A directory with a configuration but no weights is named."""
    directory, _ = save_model("opt")
    (Path(directory) / "model.safetensors").unlink()

    with pytest.raises(NotFoundError, match=r"model\.safetensors"):
        ModelLoader(directory, CPU, torch.float32)


def test_unknown_family_lists_the_known_ones(tmp_path: Path) -> None:
    """A model of a family that is not known is refused with the list of those that are."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))

    with pytest.raises(InvalidInputError, match="llama, mistral, opt"):
        ModelLoader(str(tmp_path), CPU, torch.float32)


def with_config(directory: str, **changes: object) -> str:
    """Changes a saved model's configuration; returns its directory."""
    path = Path(directory) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def read_all(directory: str) -> None:
    """Reads a model's dimensions, its embedding and its first layer."""
    read_shape(directory)
    loader = ModelLoader(directory, CPU, torch.float32)
    loader.load_embedding()
    loader.source.layer(0)
    loader.load_head(None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_act": "snake"}, "activation 'snake'"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "configuration"),
        ({"hidden_size": "wide"}, "configuration"),
        ({"num_attention_heads": 7}, "configuration"),
        ({"num_hidden_layers": 0}, "num_layers is 0"),
        ({"intermediate_size": 80}, "mlp.gate_proj.weight"),
        ({"vocab_size": 7}, "embed_tokens"),
        ({"num_attention_heads": 0}, "configuration of the model .* is wrong"),
        ({"rms_norm_eps": -1.0}, r"epsilon of its norms is -1\.0"),
        ({"quantization_config": "foo"}, "quantization_config is no JSON object"),
    ],
)
def test_configuration_that_cannot_be_is_refused_by_name(
    save_model: SaveModel,
    changes: dict[str, object],
    says: str,
) -> None:
    """A configuration that no model can have, or that is not that of the weights, says what is wrong."""
    directory = with_config(save_model("llama-gqa-untied")[0], **changes)

    with pytest.raises(InvalidInputError, match=says) as caught:
        read_all(directory)

    assert caught.value.reason != "UNKNOWN_FAMILY"


def test_damaged_files_are_named(save_model: SaveModel, tmp_path: Path) -> None:
    """A file that is cut short, an index without a map, and a shard that is not there are each named."""
    directory, _ = save_model("opt")
    path = Path(directory) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInputError, match=r"model\.safetensors' is damaged"):
        open_checkpoint(directory)

    index = Path(directory) / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(InvalidInputError, match=r"index\.json' is damaged"):
        open_checkpoint(directory)
    index.write_text(json.dumps({"weight_map": {"x": "absent.safetensors"}}))
    with pytest.raises(NotFoundError, match=r"absent\.safetensors"):
        open_checkpoint(directory).tensor("x")

    (Path(directory) / "config.json").write_text('{"model_type": "llama",')
    with pytest.raises(InvalidInputError, match=r"config\.json' is damaged"):
        read_shape(directory)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(InvalidInputError, match=r"broken\.gguf"):
        read_shape(str(tmp_path / "broken.gguf"))
    with pytest.raises(NotFoundError):
        read_shape("x" * 5000)


def test_weights_that_are_not_numbers_are_named(save_model: SaveModel) -> None:
    """A tensor with a NaN is refused by its name."""
    directory, _ = save_model("opt")
    path = Path(directory) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.decoder.layers.2.fc1.weight"][3, 4] = float("nan")
    save_file(tensors, path)

    with pytest.raises(InvalidInputError, match=r"layers\.2\.fc1\.weight"):
        ModelLoader(directory, CPU, torch.float32).source.layer(2)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.embed_tokens.weight", torch.tensor(1.0)),
        ("model.embed_tokens.weight", torch.zeros(0, 64)),
        ("model.embed_tokens.weight", torch.zeros(199)),
        ("model.layers.0.mlp.down_proj.weight", torch.zeros(64, 96).to(torch.float8_e4m3fn)),
        ("model.norm.weight", torch.ones(64, dtype=torch.int32)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype}-{tuple(value.shape)}",
)
def test_tensors_of_other_shapes_and_types_are_named(save_model: SaveModel, name: str, tensor: torch.Tensor) -> None:
    """A tensor without rows, or of numbers that weights cannot be, is refused by its name, whichever it is."""
    directory, _ = save_model("llama-gqa-untied")
    path = Path(directory) / "model.safetensors"
    save_file(load_file(path) | {name: tensor}, path)

    with pytest.raises(InvalidInputError, match=name) as caught:
        read_all(directory)

    assert caught.value.reason == "BAD_TENSOR"


def test_a_cache_on_a_full_disk_keeps_nothing(tmp_path: Path) -> None:
    """What cannot be written is not kept and left behind by nobody; whoever made it goes on."""
    cache = LruDirectory(tmp_path, 10**9)
    write = partial(write_safetensors, {"x": torch.zeros(10_000)}, metadata={})

    with largest_file(1_000):
        assert cache.store("x.safetensors", write) is None
    assert not list(tmp_path.iterdir())

    assert cache.store("x.safetensors", write) == tmp_path / "x.safetensors"
