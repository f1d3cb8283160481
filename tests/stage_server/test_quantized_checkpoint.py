"""Checkpoints that others quantized are served with the weights that they store, or refused by what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_models import SaveModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from llmpq.errors import InvalidInputError, NotFoundError
from llmpq.families import linear_names
from llmpq.memory import layer_bytes
from llmpq.model import ModelFiles, read_shape
from llmpq.plan import LayerPrecision
from llmpq.stored_layers import read_stored_layers
from quantizer.linear import build_linear
from quantizer.quantized_linear import QuantizedLinear
from quantizer.rounded import RowRounded
from quantizer.rounding import round_rows
from stage_server.loader import ModelLoader

CPU = torch.device("cpu")
GROUP = 32
Q_PROJ = "model.layers.1.self_attn.q_proj"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
SYMMETRIC_INT8 = GPTQ | {"bits": 8, "group_size": -1, "sym": True}
Tensors = dict[str, torch.Tensor]


def words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Each column as one large number, cut into words of 32 bits along the first axis: GPTQ by its definition."""
    columns = [sum(value << bits * i for i, value in enumerate(column)) for column in values.t().tolist()]
    num_words = -(-len(values) * bits // 32)
    cut = [[column >> 32 * word & 0xFFFFFFFF for column in columns] for word in range(num_words)]
    return torch.tensor(cut, dtype=torch.int64).to(torch.int32)


def gptq_linear(shape: torch.Size, settings: dict[str, Any], order: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """The tensors of a random linear that takes its inputs group by group in this order, and its weight (out, in)."""
    out_features, in_features = shape
    bits, size = settings["bits"], settings["group_size"] if settings["group_size"] > 0 else in_features
    group_of = torch.empty(in_features, dtype=torch.int32)
    group_of[order] = torch.arange(in_features, dtype=torch.int32) // size
    grid = (in_features // size, out_features)
    codes = torch.randint(0, 2**bits, (in_features, out_features))
    zeros = torch.full(grid, 2 ** (bits - 1)) if settings["sym"] else torch.randint(0, 2**bits, grid)
    scales = ((torch.rand(grid) + 0.5) / 2**bits / 4).half()
    less = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
    tensors = {
        "qweight": words(codes, bits),
        "qzeros": words(((zeros - less) % 2**bits).t(), bits).t().contiguous(),
        "scales": scales,
        "g_idx": group_of,
    }
    return tensors, ((codes - zeros[group_of]) * scales[group_of].float()).t()


def quantize(directory: str, model: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Puts random GPTQ weights into a saved model, and what they stand for into the model itself."""
    is_scattered = settings["desc_act"] and not settings.get("static_groups")
    orders = {size: torch.randperm(size) if is_scattered else torch.arange(size) for size in (64, 96)}

    def replace(tensors: Tensors) -> None:
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and ".layers." in name:
                made, weight = gptq_linear(module.weight.shape, settings, orders[module.in_features])
                del tensors[f"{name}.weight"]
                tensors |= {f"{name}.{part}": tensor for part, tensor in made.items()}
                module.weight.data = weight

    edit(directory, replace)
    configure(directory, settings)


def configure(directory: str, settings: dict[str, Any]) -> None:
    """Writes a quantization_config."""
    path = Path(directory) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))


def edit(directory: str, change: Callable[[Tensors], object]) -> None:
    """Changes the tensors of a saved model."""
    path = Path(directory) / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    "settings",
    [
        GPTQ,
        GPTQ | {"checkpoint_format": "gptq_v2"},
        GPTQ | {"bits": 3, "group_size": -1},
        GPTQ | {"bits": 3},
        GPTQ | {"sym": True},
        SYMMETRIC_INT8,
        GPTQ | {"desc_act": True},
        GPTQ | {"desc_act": True, "static_groups": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama-bias", "opt"])
def test_gptq_weights_are_served_as_stored(save_model: SaveModel, name: str, settings: dict[str, Any]) -> None:
    """Every linear stands for exactly (code - zero) * scale, multiplies by it, and takes the memory foreseen."""
    directory, model = save_model(name)
    quantize(directory, model, settings)

    loader = ModelLoader(directory, CPU, torch.float32)
    for index in range(3):
        precision = loader.source.stored_precision(index)
        layer = loader.build_layer(loader.source.layer(index), precision)
        for role, modules in linear_names(model.config.model_type).by_role.items():
            built: QuantizedLinear = getattr(layer.linears, role)
            prefix = linear_names(model.config.model_type).layer.format(index)
            parts = [model.get_submodule(prefix + module) for module in modules]
            weight = torch.cat([part.weight for part in parts])
            inputs = torch.randn(5, weight.shape[1])
            expected = inputs @ weight.T + torch.cat([part.bias for part in parts])
            assert torch.equal(built.dequantized(), weight)
            assert (built.forward(inputs) - expected).norm() < 0.02 * expected.norm()
        assert layer.memory_bytes == layer_bytes(read_shape(directory), precision)


def test_codes_of_minus_128_multiply_exactly() -> None:
    """Other tools use the whole range of int8, llmpq only its symmetric part: products are right for either."""
    weight = RowRounded(torch.randint(-128, 128, (48, 64), dtype=torch.int8), torch.rand(48) + 0.5)
    weight.codes[0] = -128
    tokens = round_rows(torch.randn(9, 64))
    inputs = tokens.codes * tokens.scales[:, None]
    exact = (tokens.codes.double() @ weight.codes.double().T * tokens.scales[:, None] * weight.scales).float()

    for scheme in ("w8", "w8a8"):
        outputs = build_linear(weight, None, scheme, compute_dtype=torch.float32).forward(inputs)
        torch.testing.assert_close(outputs, exact, rtol=1e-5, atol=1e-2)


def test_the_fingerprint_covers_the_quantization(save_model: SaveModel) -> None:
    """A model that is quantized in place is another model."""
    directory, model = save_model("opt")
    before = ModelFiles.locate(directory).fingerprint

    quantize(directory, model, GPTQ)

    assert ModelFiles.locate(directory).fingerprint != before


def test_another_precision_than_the_stored_one_is_refused(save_model: SaveModel) -> None:
    """A layer that is stored at w4 cannot be built at w8; the error names both and the layer."""
    directory, model = save_model("llama-gqa-untied")
    quantize(directory, model, GPTQ)
    loader = ModelLoader(directory, CPU, torch.float32)

    with pytest.raises(InvalidInputError, match=r"Layer 1 .* w4 in groups of 32.* w8 cannot be had") as refused:
        loader.build_layer(loader.source.layer(1), LayerPrecision("w8"))

    assert refused.value.reason == "STORED_PRECISION"


def lose(name: str) -> Callable[[Tensors], object]:
    """A change that loses a tensor."""
    return lambda tensors: tensors.pop(f"{Q_PROJ}.{name}")


def change(name: str, changed: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], object]:
    """A change of one tensor."""
    return lambda tensors: tensors.update({f"{Q_PROJ}.{name}": changed(tensors[f"{Q_PROJ}.{name}"]).contiguous()})


@pytest.mark.parametrize(
    ("settings", "damage", "says"),
    [
        (GPTQ, lose("scales"), r"q_proj\.scales' is missing"),
        (GPTQ, lose("qzeros"), r"q_proj\.qzeros' is missing"),
        (GPTQ | {"desc_act": True}, lose("g_idx"), r"q_proj\.g_idx' is missing"),
        (GPTQ, change("qweight", lambda words: words[1:]), r"q_proj\.qweight' is torch\.int32 of shape \(7, 64\)"),
        (GPTQ, change("scales", lambda scales: scales.t()), r"q_proj\.scales' is torch\.float16 of shape \(64, 2\)"),
        (GPTQ, change("qzeros", torch.Tensor.long), r"q_proj\.qzeros' is torch\.int64"),
        (GPTQ, change("scales", lambda scales: scales * float("nan")), r"q_proj\.scales' holds NaN"),
        (GPTQ, change("scales", lambda scales: scales.float() * 1.0001), "scales that float16 cannot hold"),
        (GPTQ, change("g_idx", lambda groups: groups.flip(0)), "scatters groups, though .*desc_act is not set"),
        (GPTQ | {"desc_act": True}, change("g_idx", lambda groups: groups.flip(0)), "k_proj' puts inputs into other"),
        (GPTQ, change("g_idx", torch.zeros_like), "groups of other sizes than 32"),
        (SYMMETRIC_INT8, change("qzeros", lambda zeros: zeros + 1), "qzeros' is not symmetric"),
    ],
)
def test_damaged_tensors_are_named(
    save_model: SaveModel, settings: dict[str, Any], damage: Callable[[Tensors], object], says: str
) -> None:
    """A tensor that is missing, of another shape or type, or against the configuration is named with what is wrong."""
    directory, model = save_model("llama-gqa-untied")
    quantize(directory, model, settings)
    edit(directory, damage)
    source = ModelLoader(directory, CPU, torch.float32).source

    with pytest.raises((InvalidInputError, NotFoundError), match=says):
        source.layer(1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quant_method": "awq"}, "known are compressed-tensors, gptq"),
        (GPTQ | {"group_size": 16}, "4 bits in groups of 16"),
        (GPTQ | {"dynamic": {"-:.*down_proj": {}}}, r"w4 in groups of 32 for '.*q_proj' but floats for '.*down_proj'"),
        (GPTQ | {"dynamic": {"+:.*layers.1": {"group_size": 64}}}, "w4 in groups of 32 and w4 in groups of 64"),
        (GPTQ | {"dynamic": {"+:.*layers.1": {"desc_act": True}}}, "scattered in one model"),
    ],
    ids=str,
)
def test_quantizations_that_cannot_be_served_are_refused_before_weights_are_read(
    save_model: SaveModel, settings: dict[str, Any], says: str
) -> None:
    """An unknown method, precisions that there are not, and layers of several say what the configuration has."""
    directory, _ = save_model("llama-gqa-untied")
    configure(directory, settings)

    with pytest.raises(InvalidInputError, match=says):
        read_stored_layers(directory)
    with pytest.raises(InvalidInputError, match=says):
        ModelLoader(directory, CPU, torch.float32)
