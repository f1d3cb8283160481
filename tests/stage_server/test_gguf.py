"""GGUF files of every architecture that is read give the model that they were written from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from gguf_files import write_gguf
from parity_models import SaveModel
from slices import Pipeline, random_tokens, reference
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from llmpq.errors import InvalidInputError
from llmpq.gguf_file import GgufFile
from llmpq.model import read_shape
from stage_server.gguf_checkpoint import GgufCheckpoint

NAMES = (
    "bloom",
    "gemma",
    "gemma2",
    "gemma3-scaled",
    "llama-3-rope",
    "llama-bias",
    "llama-gqa-untied",
    "llama-mha-tied",
    "mistral",
    "phi3",
    "phi3-longrope",
    "phi3-window-partial",
    "qwen2",
    "qwen3",
)


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_the_model_written(save_model: SaveModel, tmp_path: Path, name: str) -> None:
    """Metadata, names and layouts come back: prefill, a later chunk and decode give transformers' logits."""
    _, model = save_model(name)
    path = write_gguf(model, tmp_path / "model.gguf")
    tokens = random_tokens(3, 24)
    expected = reference(model, tokens)
    pipeline = Pipeline(str(path), (1,))

    chunks = [pipeline.logits([part], (0,), (start,))[0] for start, part in ((0, tokens[:12]), (12, tokens[12:-1]))]
    decoded = pipeline.logits([tokens[-1:]], (0,), (len(tokens) - 1,))[0]

    torch.testing.assert_close(torch.cat((*chunks, decoded)), expected, atol=1e-4, rtol=1e-4)
    assert read_shape(str(path)).max_positions == pipeline.spec.max_positions


@pytest.mark.parametrize("name", ["bloom", "gemma2", "gemma3-scaled", "llama-gqa-untied", "phi3", "qwen2", "qwen3"])
def test_tensors_are_those_that_transformers_reads(save_model: SaveModel, tmp_path: Path, name: str) -> None:
    """Transformers' own reader of GGUF, where it knows the architecture, undoes the conversion in the same way."""
    _, model = save_model(name)
    path = write_gguf(model, tmp_path / "model.gguf")
    checkpoint = GgufCheckpoint(path)

    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]

    assert len(theirs) > 20
    for key, tensor in theirs.items():
        assert torch.equal(checkpoint.tensor(key), tensor), key


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"rope__scaling__type": "yarn"}, "rotary scaling 'yarn'"),
        ({"expert_count": 8}, "expert_count 8"),
    ],
)
def test_variants_that_cannot_be_run_are_refused_by_name(
    save_model: SaveModel, tmp_path: Path, extra: dict[str, str | int], says: str
) -> None:
    """A file that asks for more than is computed here is refused, and the message says what it asks for."""
    path = write_gguf(save_model("qwen2")[1], tmp_path / "model.gguf", **extra)

    with pytest.raises(InvalidInputError, match=says):
        read_shape(str(path))


def test_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    """A file of another architecture is refused with the list of those that are read."""
    writer = GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(InvalidInputError, match=r"'mamba'.*known: bloom, gemma, .*llama, phi3, qwen2"):
        read_shape(str(tmp_path / "model.gguf"))


def test_a_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    """One of several parts says that it is one, and how to join them; a missing tensor would say neither."""
    path = tmp_path / "model-00001-of-00003.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(InvalidInputError, match=r"one of 3 parts.*llama-gguf-split --merge"):
        read_shape(str(path))


def test_missing_field_is_named(save_model: SaveModel, tmp_path: Path) -> None:
    """A file without a field that its architecture needs is refused by that field's name."""
    path = write_gguf(save_model("qwen3")[1], tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes().replace(b"qwen3.context_length", b"qwen3.context_lengtX"))

    with pytest.raises(InvalidInputError, match=r"lacks the field 'qwen3\.context_length'"):
        read_shape(str(path))


def test_file_that_is_cut_short_is_named(save_model: SaveModel, tmp_path: Path) -> None:
    """Half a file is damaged, whichever half of it is asked for."""
    path = write_gguf(save_model("qwen2")[1], tmp_path / "half.gguf")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(InvalidInputError, match=r"half\.gguf' is damaged"):
        GgufFile(path)


def test_fields_and_tensors_are_those_of_the_full_reader(save_model: SaveModel, tmp_path: Path) -> None:
    """Passing over the vocabulary changes nothing of what is asked for."""
    path = write_gguf(save_model("gemma2")[1], tmp_path / "model.gguf")
    file, full = GgufFile(path), GGUFReader(path)

    for key, field in full.fields.items():
        if key.startswith("gemma2."):
            assert file.get(key.removeprefix("gemma2.")) == field.contents()
    for tensor in full.tensors:
        assert np.array_equal(file.values(tensor.name), tensor.data)
    assert len(full.fields) > 10
    assert len(full.tensors) > 20
