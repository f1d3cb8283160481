"""An exported checkpoint holds the weights that would be served, for llmpq and for transformers alike."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import largest_file
from gguf_files import write_gguf
from parity_models import SaveModel
from safetensors.torch import load_file, save_file
from slices import random_tokens
from tiny_models import save_random_llama
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

from llmpq.errors import ConflictError, InvalidInputError, NotFoundError
from llmpq.plan import LayerPrecision, PlanOptions, Rounding
from quantizer.rounded import RoundedWeight
from stage_server.config import StageConfig
from stage_server.device import open_device
from stage_server.export import exporter
from stage_server.export.output import appearing
from stage_server.export.request import ExportRequest
from stage_server.export.shards import ShardWriter
from stage_server.layer_rounding import LayerRounder
from stage_server.loader import ModelLoader

DEVICE = open_device(StageConfig())
CPU = torch.device("cpu")
SYMMETRIC = Rounding(is_symmetric=True)
#: One of each scheme, for models of three layers.
MIXED = ("w4", "w8", "w16")


def export(model: str, output: Path, *schemes: str, samples: tuple[tuple[int, ...], ...] = (), **options: Any) -> str:
    """Exports a model in groups of 32, at one scheme or at one for each layer; returns the new one."""
    name = "allowed_schemes" if len(schemes) == 1 else "layer_schemes"
    request = ExportRequest(model, str(output), PlanOptions(**{name: schemes, "group_size": 32} | options))
    exporter.export(request, DEVICE, samples)
    return str(output)


def served(
    model: str, schemes: tuple[str, ...] = (), rounding: Rounding = SYMMETRIC, samples: tuple[tuple[int, ...], ...] = ()
) -> dict[str, RoundedWeight]:
    """The weights that a mesh holds for a model, by module: at `schemes` without rotation, or at what is stored."""
    loader = ModelLoader(model, CPU, torch.float32)
    if schemes:
        precisions = [LayerPrecision(name, 32 if name in {"w4", "w3"} else 0) for name in schemes]
    else:
        stored = [loader.source.stored_precision(index) for index in range(loader.spec.num_layers)]
        precisions = [precision or LayerPrecision("w16") for precision in stored]
    precisions = precisions * (loader.spec.num_layers // len(precisions))
    rounding = replace(rounding, is_unrotated=True)
    weights: dict[str, RoundedWeight] = {}
    for layer in LayerRounder(loader, DEVICE, rounding, samples).layers(dict(enumerate(precisions))):
        for role, linear in layer.linears.items():
            weights |= loader.source.linears.divided(layer.index, role, linear.stored)
    return weights


def same(one: RoundedWeight, other: RoundedWeight) -> bool:
    """Whether two weights are of one kind and equal in every tensor and setting."""
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return type(one) is type(other) and all(
        torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right for left, right in pairs
    )


@pytest.mark.parametrize("rounding", [Rounding(), SYMMETRIC, Rounding("hqq")], ids=str)
@pytest.mark.parametrize("scheme", ["w16", "w8", "w8a8", "w4", "w3"])
def test_what_is_read_back_is_what_would_be_served(
    save_model: SaveModel, tmp_path: Path, scheme: str, rounding: Rounding
) -> None:
    """Codes, scales and zero points of every scheme and rounding come back from disk as they would be served."""
    model, _ = save_model("llama-gqa-untied")

    exported = export(model, tmp_path / "out", scheme, rounding=rounding)

    expected, got = served(model, (scheme,), rounding), served(exported)
    assert expected.keys() == got.keys()
    assert all(same(weight, got[name]) for name, weight in expected.items())


@pytest.mark.parametrize("name", ["bloom", "gemma3", "llama-bias", "opt", "opt-350m", "phi3", "qwen3"])
def test_transformers_loads_every_family(save_model: SaveModel, tmp_path: Path, name: str) -> None:
    """A mixed plan of any family gives transformers the logits of the weights that are served, all else as it was."""
    model, reference = save_model(name)
    exported = export(model, tmp_path / "out", *MIXED, rounding=SYMMETRIC)

    loaded = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()

    check_logits(loaded, with_weights(reference, served(model, MIXED)))


def test_transformers_loads_zero_points_and_three_bits(save_model: SaveModel, tmp_path: Path) -> None:
    """Asymmetric weights load dequantized, which is done in float16; symmetric ones of 3 bits as any others."""
    model, reference = save_model("llama-mha-tied")
    three_bits = export(model, tmp_path / "w3", "w3", rounding=SYMMETRIC)
    asymmetric = export(model, tmp_path / "w4", "w4")

    dequantized = {name: weight.dequantized().half() for name, weight in served(model, ("w4",), Rounding()).items()}
    with pytest.warns(UserWarning, match="quantization_config"):
        loaded = AutoModelForCausalLM.from_pretrained(
            asymmetric, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
        )

    check_logits(loaded.eval(), with_tensors(reference, dequantized))
    loaded = AutoModelForCausalLM.from_pretrained(three_bits, dtype=torch.float32).eval()
    check_logits(loaded, with_weights(reference, served(model, ("w3",))))


def test_w8a8_holds_the_codes_and_rounds_activations(save_model: SaveModel, tmp_path: Path) -> None:
    """Transformers reads the weights exactly; it rounds activations too, on a slightly other grid than llmpq's."""
    model, _ = save_model("llama-gqa-untied")
    exported = export(model, tmp_path / "out", "w8a8")

    loaded = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    with torch.no_grad():
        loaded(torch.tensor([random_tokens(1, 9)]))  # the first forward pass dequantizes

    linear = loaded.model.layers[1].mlp.up_proj
    assert linear.quantization_scheme.input_activations.dynamic
    assert torch.equal(linear.weight, served(model, ("w8a8",))["model.layers.1.mlp.up_proj"].dequantized())


def test_calibrated_weights_are_those_that_a_load_calibrates(save_model: SaveModel, tmp_path: Path) -> None:
    """With the same samples, error compensation gives the codes that a stage would compute itself."""
    model, _ = save_model("llama-gqa-untied")
    rounding, samples = Rounding("gptq"), tuple(tuple(random_tokens(seed, 40)) for seed in range(3))

    exported = export(model, tmp_path / "out", "w4", rounding=rounding, samples=samples)

    expected, nearest = served(model, ("w4",), rounding, samples), served(model, ("w4",), Rounding())
    assert all(same(weight, expected[name]) for name, weight in served(exported).items())
    assert not any(same(weight, expected[name]) for name, weight in nearest.items())


def test_a_quantized_model_is_exported_as_it_is_stored(save_model: SaveModel, tmp_path: Path) -> None:
    """Exporting an exported model needs no precision, and changes nothing."""
    model, _ = save_model("llama-mha-tied")
    once = export(model, tmp_path / "once", "w4", "w8", "w3")

    request = ExportRequest(once, str(tmp_path / "twice"))
    report = exporter.export(request, DEVICE)

    assert [precision.scheme for precision in report.layers] == ["w4", "w8", "w3"]
    assert report.has_zero_points
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_a_gguf_file_becomes_a_directory(save_model: SaveModel, tmp_path: Path) -> None:
    """A GGUF file is exported with a configuration that transformers knows the model by."""
    _, reference = save_model("llama-gqa-untied")
    model = str(write_gguf(reference, tmp_path / "model.gguf"))

    exported = export(model, tmp_path / "out", "w8")

    loaded = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    check_logits(loaded, with_weights(reference, served(model, ("w8",))))


def test_tokenizer_and_generation_settings_come_along(tmp_path: Path) -> None:
    """Files beside the weights are copied, those of another quantization are not."""
    model = save_random_llama(tmp_path / "model", is_tied=True)
    (model / "generation_config.json").write_text('{"eos_token_id": 2}')
    (model / "quantize_config.json").write_text("{}")

    exported = Path(export(str(model), tmp_path / "out", "w8"))

    written = {path.name for path in exported.iterdir()}
    assert written >= {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"}
    assert "quantize_config.json" not in written
    assert (exported / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert not [name for name in written if name.startswith(".")]


def test_large_models_are_written_in_several_files(tmp_path: Path) -> None:
    """A file is written as soon as it is full, and the index says which tensor is in which."""
    tensors = {name: torch.full((size,), float(size)) for name, size in (("a", 30), ("b", 10), ("c", 90), ("d", 1))}
    with ShardWriter(tmp_path, max_shard_bytes=200) as shards:
        for number, (name, tensor) in enumerate(tensors.items()):
            shards.add_all([(name, tensor)])
            assert len(list(tmp_path.iterdir())) == (0, 0, 1, 2)[number]

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = [f"model-0000{number}-of-00003.safetensors" for number in (1, 1, 2, 3)]
    assert index["weight_map"] == dict(zip(tensors, files, strict=True))
    assert index["metadata"]["total_size"] == 131 * 4
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)


@pytest.mark.parametrize(
    ("schemes", "group_size", "says"),
    [
        (("w4",), 64, "Groups of 64 do not divide a matrix with 96 inputs.*: 0, 32"),
        ((), 32, "3 layers, and no precision is given"),
        (("w4", "w8"), 32, "3 layers, and 2 schemes are given"),
    ],
)
def test_precisions_that_cannot_be_written_are_refused(
    save_model: SaveModel, tmp_path: Path, schemes: tuple[str, ...], group_size: int, says: str
) -> None:
    """A group size that does not divide, no precision, or too few say so before anything is written."""
    model, _ = save_model("llama-gqa-untied")

    with pytest.raises(InvalidInputError, match=says):
        export(model, tmp_path / "out", *schemes, group_size=group_size)

    assert not (tmp_path / "out").exists()


def test_another_precision_than_the_stored_one_is_refused(save_model: SaveModel, tmp_path: Path) -> None:
    """An exported model cannot be exported at another precision; the error names both."""
    model, _ = save_model("llama-gqa-untied")
    exported = export(model, tmp_path / "out", "w4")

    with pytest.raises(InvalidInputError, match=r"w4 in groups of 32.*w8"):
        export(exported, tmp_path / "again", "w8")


def test_nothing_is_written_over_and_nothing_left_half_done(save_model: SaveModel, tmp_path: Path) -> None:
    """A directory with something in it is refused; an export that fails leaves nothing behind."""
    model, _ = save_model("opt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConflictError, match="full' exists"):
        export(model, tmp_path / "full", "w8")

    path = Path(model) / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.decoder.layers.2.fc2.weight"]
    save_file(tensors, path)
    with pytest.raises(NotFoundError, match=r"layers\.2\.fc2"):
        export(model, tmp_path / "out", "w8")
    assert not list(tmp_path.glob("out*"))


def test_an_export_removes_nothing_that_it_did_not_make(save_model: SaveModel, tmp_path: Path) -> None:
    """Files beside the output, whatever their names, outlive an export; one that has begun keeps others out."""
    model, _ = save_model("opt")
    for name in ("out.unfinished", ".unfinished-mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()

    export(model, tmp_path / "out", "w8")

    assert (tmp_path / "out.unfinished" / "mine").exists()
    assert (tmp_path / ".unfinished-mine" / "mine").exists()
    with appearing(tmp_path / "two"), pytest.raises(ConflictError, match=r"two' exists.*\.unfinished-"):
        export(model, tmp_path / "two", "w8")
    assert not (tmp_path / "two").exists()


def test_an_empty_directory_is_filled_where_it_is(
    save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.` and a link to an empty directory are as good as a name; the directory stays the same one."""
    model, _ = save_model("opt")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    inode = (tmp_path / "here").stat().st_ino
    monkeypatch.chdir(tmp_path / "here")

    export(model, Path(), "w8")
    export(model, tmp_path / "link", "w8")

    assert (tmp_path / "here").stat().st_ino == inode
    for name in ("here", "there"):
        assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / name).iterdir()}
    assert (tmp_path / "link").is_symlink()


def test_a_full_disk_is_named(save_model: SaveModel, tmp_path: Path) -> None:
    """A disk that takes no more bytes is an error of the operating system that names the file; nothing is left."""
    model, _ = save_model("opt")
    with largest_file(10_000), pytest.raises(OSError, match=r"large.*part-00001\.safetensors"):
        export(model, tmp_path / "out", "w8")
    assert not (tmp_path / "out").exists()


def with_weights(model: PreTrainedModel, weights: dict[str, RoundedWeight]) -> PreTrainedModel:
    """The model with these weights in place of its own."""
    return with_tensors(model, {name: weight.dequantized() for name, weight in weights.items()})


def with_tensors(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """As `with_weights`, of floats."""
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_submodule(name).weight.copy_(weight)
    return model


def check_logits(model: PreTrainedModel, reference: PreTrainedModel) -> None:
    """Both give the same logits, to the last bits of float32."""
    tokens = torch.tensor([random_tokens(5, 24)])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, reference(tokens).logits, atol=1e-5, rtol=1e-5)
