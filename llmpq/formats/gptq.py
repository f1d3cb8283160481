"""The `quantization_config` of GPTQ checkpoints, as AutoGPTQ and GPTQModel write it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmpq.formats.stored import Layout, StoredLinear, check_patterns, stored_precision, unsupported
from llmpq.messages import from_fields

_WHERE = "quantization_config"
#: What keys of `dynamic` begin with: for linears that are not quantized, and for those that are quantized differently.
_LEFT_OUT, _CHANGED = "-:", "+:"
#: Only linears of layers are quantized: their names have the layer's index.
_IN_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Gptq:
    """A configuration, read; a Quantization.

    Attributes:
        dynamic: What differs for some linears, by patterns of their names.
        modules_in_block_to_quantize: Names inside a layer of the linears that are quantized; None is all.
    """

    bits: int
    group_size: int = -1
    sym: bool = True
    desc_act: bool = False
    static_groups: bool = False
    checkpoint_format: str = ""
    format: str = ""
    lm_head: bool = False
    pack_dtype: str = "int32"
    dynamic: Mapping[str, Mapping[str, Any]] | None = field(default_factory=dict)
    modules_in_block_to_quantize: tuple[tuple[str, ...] | str, ...] | None = None

    def of(self, module: str) -> StoredLinear | None:
        """See Quantization."""
        if not self._is_quantized(module):
            return None
        for pattern, changes in (self.dynamic or {}).items():
            if re.match(pattern.removeprefix(_CHANGED), module):
                return _stored(from_fields(Gptq, {**vars(self), **changes}))
        return _stored(self)

    def _is_quantized(self, module: str) -> bool:
        if not _IN_LAYER.search(module):
            return False
        left_out = [pattern.removeprefix(_LEFT_OUT) for pattern in self.dynamic or {} if pattern.startswith(_LEFT_OUT)]
        if any(re.match(pattern, module) for pattern in left_out):
            return False
        if self.modules_in_block_to_quantize is None:
            return True
        groups = ((entry,) if isinstance(entry, str) else entry for entry in self.modules_in_block_to_quantize)
        return any(module.endswith(f".{name}") for names in groups for name in names)


def parse(fields: Mapping[str, Any]) -> Gptq:
    """Reads a configuration.

    Raises:
        InvalidInputError: A field is missing or malformed, or the head is quantized too.
    """
    config = from_fields(Gptq, fields)
    patterns = (key.removeprefix(_LEFT_OUT).removeprefix(_CHANGED) for key in config.dynamic or {})
    check_patterns(patterns, f"{_WHERE}.dynamic")
    if config.lm_head:
        raise unsupported(f"{_WHERE}.lm_head", "that the head is quantized too")
    return config


def _stored(config: Gptq) -> StoredLinear:
    layout = config.checkpoint_format or config.format or Layout.GPTQ_1
    if layout not in {Layout.GPTQ_1, Layout.GPTQ_2}:
        raise unsupported(f"{_WHERE}.checkpoint_format", f"'{layout}', and known are gptq and gptq_v2")
    if config.pack_dtype.removeprefix("torch.") != "int32":
        raise unsupported(f"{_WHERE}.pack_dtype", config.pack_dtype)
    precision = stored_precision(
        config.bits, max(config.group_size, 0), is_symmetric=config.sym, has_int8_activations=False, where=_WHERE
    )
    is_scattered = config.desc_act and not config.static_groups and precision.group_size > 0
    return StoredLinear(Layout(layout), precision, config.sym, is_scattered)
