"""How exported checkpoints store each precision, and the `quantization_config` of compressed-tensors that says so."""

import re
from collections.abc import Sequence
from typing import Any

from llmpq.formats.stored import Layout, StoredLinear
from llmpq.plan import LayerPrecision
from llmpq.schemes import SCHEMES

#: Format of a checkpoint whose groups have several.
_MIXED = "mixed-precision"


def stored_as(precision: LayerPrecision, *, is_symmetric: bool) -> StoredLinear | None:
    """How a precision is stored; None is plain floats.

    Args:
        precision: Of the weight.
        is_symmetric: Whether zero points of w4 and w3 are the middle code; those of w8 always are.
    """
    scheme = SCHEMES[precision.scheme]
    if scheme.name == "w16":
        return None
    layout = Layout.INT8 if scheme.has_int8_activations else Layout.PACKED
    return StoredLinear(layout, precision, is_symmetric or not scheme.is_grouped)


def describe(
    layer: str, linears: Sequence[str], layers: Sequence[StoredLinear | None], head: str
) -> dict[str, Any] | None:
    """The configuration of a checkpoint whose layers are each stored in one way; None if all are plain floats.

    Args:
        layer: What stands before the names of a layer's linears; `{}` is its index.
        linears: These names.
        layers: How each layer's linears are stored; None is plain floats.
        head: Name of the head, which is never quantized.
    """
    kinds = list(dict.fromkeys(stored for stored in layers if stored is not None))
    if not kinds:
        return None
    plain = [index for index, stored in enumerate(layers) if stored is None]
    groups = {
        f"group_{number}": {
            "targets": [_pattern(layer, linears, [index for index, stored in enumerate(layers) if stored == kind])],
            **_group(kind),
        }
        for number, kind in enumerate(kinds)
    }
    layouts = {kind.layout.value for kind in kinds}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": layouts.pop() if len(layouts) == 1 else _MIXED,
        "config_groups": groups,
        "ignore": [head, *([_pattern(layer, linears, plain)] if plain else [])],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _pattern(layer: str, linears: Sequence[str], indices: Sequence[int]) -> str:
    """A target that names these linears of these layers."""
    before, after = map(re.escape, layer.split("{}"))
    numbers, names = "|".join(map(str, indices)), "|".join(map(re.escape, linears))
    return f"re:^{before}({numbers}){after}({names})$"


def _group(stored: StoredLinear) -> dict[str, Any]:
    """The `QuantizationScheme` of a way of storing, without targets."""
    scheme, group_size = SCHEMES[stored.precision.scheme], stored.precision.group_size
    weights = {
        "num_bits": scheme.weight_bits,
        "type": "int",
        "symmetric": stored.is_symmetric,
        "strategy": "group" if group_size else "channel",
        "group_size": group_size or None,
        "dynamic": False,
    }
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "weights": weights,
        "input_activations": activations if scheme.has_int8_activations else None,
        "output_activations": None,
        "format": stored.layout.value,
    }
