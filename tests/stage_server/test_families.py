"""Every family: what it takes in memory, what its checkpoints may be called, and which variants are refused."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from parity_models import MODELS, VOCABULARY, SaveModel
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

import llmpq.families
from llmpq import gguf_config, memory
from llmpq.errors import InvalidInputError
from llmpq.families import KNOWN_FAMILIES
from llmpq.model import read_shape
from llmpq.plan import LayerPrecision
from llmpq.schemes import SCHEMES
from quantizer.native.library import kernels
from stage_server import families
from stage_server.loader import ModelLoader

CPU = torch.device("cpu")
PRECISIONS = (LayerPrecision("w16"), LayerPrecision("w8"), LayerPrecision("w4", 32), LayerPrecision("w3", 64))


def test_every_known_family_is_among_the_parity_models(save_model: SaveModel) -> None:
    """What is shown of the models below is shown of every family that can be run."""
    assert {read_shape(save_model(name)[0]).family for name in MODELS} == set(KNOWN_FAMILIES)


@pytest.mark.parametrize("name", MODELS)
def test_loaded_bytes_equal_the_formula(save_model: SaveModel, name: str) -> None:
    """Layers, embedding and head take exactly the bytes that planner and stages reckon with, at most for matrices."""
    directory, model = save_model(name)
    shape = read_shape(directory)
    loader = ModelLoader(directory, CPU, torch.float32)

    for precision in PRECISIONS:
        layer = loader.build_layer(loader.source.layer(1), precision)
        linears = {field.name: getattr(layer.linears, field.name) for field in fields(layer.linears)}
        assert {role: (part.out_features, part.in_features) for role, part in linears.items()} == shape.linear_shapes
        # A scheme may count its matrices as where most is filled up (see llmpq.schemes); everything else is exact.
        matrices = sum(part.weight_bytes for part in linears.values())
        scheme = SCHEMES[precision.scheme]
        counted = sum(scheme.weight_bytes(*size, precision.group_size) for size in shape.linear_shapes.values())
        assert layer.memory_bytes - matrices == memory.layer_bytes(shape, precision) - counted
        assert matrices == counted if precision.scheme == "w16" else matrices <= counted
    embedding = loader.load_embedding()
    own, shared = loader.load_head(None), loader.load_head(embedding)
    assert embedding.memory_bytes == memory.embedding_bytes(shape)
    assert own.memory_bytes == memory.head_bytes(shape)
    if kernels() is not None:
        screened = loader.load_head(None, is_screened=True)
        assert screened.memory_bytes == memory.head_bytes(shape, is_screened=True)
    both = memory.embedding_head_bytes(shape, is_first=True, is_last=True)
    assert embedding.memory_bytes + shared.memory_bytes == both

    layers = memory.layer_bytes(shape, LayerPrecision("w16")) * shape.num_layers
    num_floats = layers / 2 + both / 2  # each parameter is 2 bytes but those of norms and biases, which are 4
    num_wide = (shape.num_norm_elements + shape.num_bias_elements) * shape.num_layers
    num_wide += shape.num_embedding_norm_elements + shape.num_head_norm_elements
    assert num_floats - num_wide == model.num_parameters()


@pytest.mark.parametrize(("name", "prefix"), [("bloom", "transformer."), ("opt", "model."), ("qwen2", "model.")])
def test_names_may_lack_the_first_part(save_model: SaveModel, name: str, prefix: str) -> None:
    """Checkpoints saved from the model without its head, as BLOOM's own, have shorter names."""
    directory, _ = save_model(name)
    whole = ModelLoader(directory, CPU, torch.float32).source.layer(2)
    path = Path(directory) / "model.safetensors"
    save_file({key.removeprefix(prefix): tensor for key, tensor in load_file(path).items()}, path)

    short = ModelLoader(directory, CPU, torch.float32).source.layer(2)

    for role, linear in whole.linears.items():
        assert torch.equal(short.linears[role].weight, linear.weight)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_model_inside_a_multimodal_gemma3_is_found(save_model: SaveModel, tmp_path: Path, prefix: str) -> None:
    """Of a Gemma 3 with a vision tower the text model is served, under either of the names that it has had."""
    directory, text = save_model("gemma3")
    tiny = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
    }
    config = Gemma3Config(text_config=text.config.to_dict(), vision_config=tiny, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.save_pretrained(tmp_path / "multimodal")
    path = tmp_path / "multimodal" / "model.safetensors"
    saved = load_file(path)
    assert any(name.startswith("language_model.model.layers.0.") for name in saved)
    save_file({name.replace("language_model.model.", prefix): tensor for name, tensor in saved.items()}, path)

    loader = ModelLoader(str(tmp_path / "multimodal"), CPU, torch.float32)

    alone = ModelLoader(directory, CPU, torch.float32)
    assert loader.spec.layers == alone.spec.layers
    assert torch.equal(*(of.load_head(None).vocabulary.dequantized() for of in (loader, alone)))
    for role, linear in alone.source.layer(2).linears.items():
        assert torch.equal(loader.source.layer(2).linears[role].weight, linear.weight)


def test_longrope_is_served_up_to_its_original_context(save_model: SaveModel) -> None:
    """Beyond it other rotary frequencies hold for all positions, those in the cache included."""
    assert read_shape(save_model("phi3-longrope")[0]).max_positions == 64


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"hidden_activation": "snake"}, "activation 'snake'"),
        ("qwen2", {"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "linear_attention"),
        ("mistral", {"model_type": "mamba"}, ", ".join(KNOWN_FAMILIES)),
    ],
)
def test_variants_that_cannot_be_run_are_refused_by_name(
    save_model: SaveModel, name: str, changes: dict[str, object], says: str
) -> None:
    """A variant that would come out wrong is refused, and the message says what it is."""
    directory, _ = save_model(name)
    path = Path(directory) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    with pytest.raises(InvalidInputError, match=says):
        ModelLoader(directory, CPU, torch.float32)


def test_every_list_of_families_has_the_same() -> None:
    """What can be described is what has a size; names of linears and GGUF files are of these families only."""
    known = set(KNOWN_FAMILIES)
    assert set(families._DESCRIBE) == known
    assert set(llmpq.families._LINEAR_NAMES) < known
    assert {family for family, _ in gguf_config._ARCHITECTURES.values()} < known


def test_vocabulary_is_that_of_the_tests() -> None:
    """Token ids of the other tests are drawn below it."""
    assert {factory().config.vocab_size for factory in MODELS.values()} == {VOCABULARY}
