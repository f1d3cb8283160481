"""Configurations of quantized checkpoints say which linear is stored how, or are refused by what they say."""

from typing import Any

import pytest

from llmpq.errors import InvalidInputError
from llmpq.formats import Layout, StoredLinear, parse_quantization
from llmpq.plan import LayerPrecision

Q_PROJ = "model.layers.{}.self_attn.q_proj"
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def weights(num_bits: int, group_size: int | None = None, **more: Any) -> dict[str, Any]:
    """`QuantizationArgs` of weights."""
    strategy = "group" if group_size else "channel"
    return {
        "num_bits": num_bits,
        "type": "int",
        "symmetric": True,
        "strategy": strategy,
        "group_size": group_size,
    } | more


def compressed(*groups: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A compressed-tensors configuration of these groups."""
    named = {f"group_{number}": {"targets": ["Linear"]} | group for number, group in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": named} | fields


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (compressed({"weights": weights(4, 128)}), (Layout.PACKED, "w4", 128, True)),
        (compressed({"weights": weights(3, 64, symmetric=False)}), (Layout.PACKED, "w3", 64, False)),
        (compressed({"weights": weights(8)}), (Layout.PACKED, "w8", 0, True)),
        (compressed({"weights": weights(4, strategy=None, group_size=-1)}), (Layout.PACKED, "w4", 0, True)),
        (compressed({"weights": weights(4, 32, actorder="static")}), (Layout.PACKED, "w4", 32, True)),
        (
            compressed({"weights": weights(8), "input_activations": TOKENS, "format": "int-quantized"}),
            (Layout.INT8, "w8a8", 0, True),
        ),
        (compressed({"weights": weights(8)}, format="naive-quantized"), (Layout.INT8, "w8", 0, True)),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, (Layout.GPTQ_1, "w4", 128, True)),
        ({"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq_v2"}, (Layout.GPTQ_2, "w8", 0, True)),
        ({"quant_method": "gptq", "bits": 3, "group_size": -1, "sym": False}, (Layout.GPTQ_1, "w3", 0, False)),
    ],
)
def test_precisions_are_read(fields: dict[str, Any], expected: tuple[Layout, str, int, bool]) -> None:
    """Bits, groups and symmetry of either method come to one of llmpq's precisions."""
    layout, scheme, group_size, is_symmetric = expected
    stored = parse_quantization(fields).of(Q_PROJ.format(3))

    assert stored == StoredLinear(layout, LayerPrecision(scheme, group_size), is_symmetric)


def test_a_name_goes_before_a_pattern_and_a_pattern_before_the_class() -> None:
    """Of several groups that match a linear the most particular one counts, wherever it stands; `ignore` before all."""
    quantization = parse_quantization(
        compressed(
            {"weights": weights(4, 64)},
            {"weights": weights(3, 64), "targets": ["re:.*layers\\.(1|2)\\..*"]},
            {"weights": weights(8), "targets": [Q_PROJ.format(2)]},
            ignore=["lm_head", "re:model\\.layers\\.3\\."],
        )
    )

    found = [quantization.of(Q_PROJ.format(layer)) for layer in range(4)]

    assert [stored and stored.precision.scheme for stored in found] == ["w4", "w3", "w8", None]
    assert quantization.of("lm_head") is None


def test_gptq_may_differ_by_linear() -> None:
    """Patterns of `dynamic` leave linears out or change them; `modules_in_block_to_quantize` names those meant."""
    fields = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 64,
        "modules_in_block_to_quantize": [["self_attn.q_proj"]],
    }
    dynamic = {"+:.*\\.1\\..*": {"bits": 3}, "-:.*\\.2\\..*": {}}
    quantization = parse_quantization(fields | {"dynamic": dynamic})

    found = [quantization.of(Q_PROJ.format(layer)) for layer in range(3)]

    assert [stored and stored.precision.scheme for stored in found] == ["w4", "w3", None]
    assert quantization.of("model.layers.0.mlp.up_proj") is None


def test_scattered_groups_are_seen() -> None:
    """Groups in the order of activations are scattered, unless they were fixed before it or are whole channels."""
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True}
    tried = [gptq, gptq | {"static_groups": True}, gptq | {"group_size": -1}]
    tried += [compressed({"weights": weights(4, 64, actorder=order)}) for order in ("group", "weight")]

    found = [parse_quantization(fields).of(Q_PROJ.format(0)) for fields in tried]

    assert [stored is not None and stored.is_scattered for stored in found] == [True, False, False, True, False]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"quant_method": "awq"}, "known are compressed-tensors, gptq"),
        ({}, "quant_method ''"),
        ({"quant_method": "gptq"}, "bits"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "8 bits in groups of 128"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 16}, "4 bits in groups of 16"),
        ({"quant_method": "gptq", "bits": 2, "group_size": 64}, "2 bits"),
        ({"quant_method": "gptq", "bits": 4, "lm_head": True}, "head is quantized"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "pack_dtype": "int16"}, "int16"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:(": {}}}, "pattern"),
        (
            compressed({"weights": weights(8, symmetric=False)}),
            "group_0 says weights of 8 bits per channel, asymmetric",
        ),
        (compressed({"weights": weights(4, 64), "input_activations": TOKENS}), "4 bits .* with 8-bit activations"),
        (compressed({"weights": weights(8), "input_activations": TOKENS | {"dynamic": False}}), "static int8"),
        (compressed({"weights": weights(8, type="float")}), "type float"),
        (compressed({"weights": weights(8, strategy="tensor")}), "per tensor"),
        (compressed({"weights": weights(4, 64)}, format="int-quantized"), "4-bit weights in the format"),
        (compressed({"weights": weights(4, 16)}, format="nvfp4-pack-quantized"), "nvfp4"),
        (compressed({"weights": weights(4, 64), "targets": ["re:("]}), "pattern"),
        (compressed({"weights": weights(4, 64)}, sparsity_config={"format": "sparse-24-bitmask"}), "sparse-24"),
        (compressed({"weights": weights(4, 64)}, transform_config={"config_groups": {"R1": {}}}), "rotations"),
    ],
)
def test_what_no_precision_holds_is_refused_by_what_it_is(fields: dict[str, Any], says: str) -> None:
    """A method or a variant that cannot be served says what the configuration has, and what could be."""
    with pytest.raises(InvalidInputError, match=says):
        parse_quantization(fields).of("model.layers.0.self_attn.q_proj")
