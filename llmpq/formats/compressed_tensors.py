"""The `quantization_config` of compressed-tensors checkpoints, read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmpq.formats.stored import Layout, StoredLinear, check_patterns, stored_precision, unsupported
from llmpq.messages import from_fields
from llmpq.schemes import SCHEMES

#: Matches every linear, as the name of its class.
_ANY_LINEAR = "Linear"
#: The same form as `int-quantized`, by its older name.
_ALIASES = {"naive-quantized": Layout.INT8.value}


@dataclass(frozen=True)
class _Arguments:
    """What weights or activations are rounded to: `QuantizationArgs`."""

    num_bits: int = 8
    type: str = "int"
    symmetric: bool = True
    group_size: int | None = None
    strategy: str | None = None
    dynamic: bool | str = False
    actorder: str | bool | None = None

    @property
    def effective_strategy(self) -> str:
        """The strategy, inferred from the group size where there is none, as the format has it."""
        if self.strategy is None and self.group_size is not None:
            return "group" if self.group_size > 0 else "channel"
        return self.strategy or "tensor"


@dataclass(frozen=True)
class _Group:
    """Linears that are stored alike: `QuantizationScheme`."""

    targets: tuple[str, ...] = ()
    weights: _Arguments | None = None
    input_activations: _Arguments | None = None
    output_activations: _Arguments | None = None
    format: str | None = None


@dataclass(frozen=True)
class CompressedTensors:
    """A configuration, read; a Quantization."""

    config_groups: Mapping[str, _Group]
    format: str = ""
    ignore: tuple[str, ...] | None = None
    sparsity_config: Mapping[str, Any] | None = None
    transform_config: Mapping[str, Any] | None = None

    def of(self, module: str) -> StoredLinear | None:
        """See Quantization."""
        if any(_is_match(module, target) for target in self.ignore or ()):
            return None
        group = next((name for target, name in self._targets if _is_match(module, target)), None)
        return self._stored(group) if group else None

    @cached_property
    def _targets(self) -> list[tuple[str, str]]:
        """Targets and the groups that they belong to, in the order that the format sets: names, patterns, the class."""
        targets = [(target, name) for name, group in self.config_groups.items() for target in group.targets]
        return sorted(targets, key=lambda entry: (entry[0] == _ANY_LINEAR, "re:" in entry[0], entry[0]))

    def _stored(self, name: str) -> StoredLinear | None:
        where = f"quantization_config.config_groups.{name}"
        group = self.config_groups[name]
        weights = group.weights
        if weights is None:
            return None
        layout = group.format or self.format
        layout = _ALIASES.get(layout, layout)
        if layout not in {Layout.PACKED, Layout.INT8}:
            raise unsupported(where, f"the format '{layout}'")
        if weights.type != "int":
            raise unsupported(where, f"weights of type {weights.type}")
        if weights.effective_strategy not in {"group", "channel"}:
            raise unsupported(where, f"scales per {weights.effective_strategy}")
        precision = stored_precision(
            weights.num_bits,
            (weights.group_size or 0) if weights.effective_strategy == "group" else 0,
            is_symmetric=weights.symmetric,
            has_int8_activations=_has_int8_activations(group, where),
            where=where,
        )
        if layout == Layout.INT8 and SCHEMES[precision.scheme].is_grouped:
            raise unsupported(where, f"{weights.num_bits}-bit weights in the format '{layout}'")
        is_scattered = weights.actorder in {"group", "dynamic", True} and precision.group_size > 0
        return StoredLinear(Layout(layout), precision, weights.symmetric, is_scattered)


def parse(fields: Mapping[str, Any]) -> CompressedTensors:
    """Reads a configuration.

    Raises:
        InvalidInputError: A field is missing or malformed, or weights are sparse or rotated.
    """
    config = from_fields(CompressedTensors, fields)
    targets = [*(config.ignore or ()), *(target for group in config.config_groups.values() for target in group.targets)]
    check_patterns(
        (target.removeprefix("re:") for target in targets if target.startswith("re:")), "quantization_config"
    )
    if config.sparsity_config and config.sparsity_config.get("format", "dense") != "dense":
        raise unsupported("quantization_config.sparsity_config", f"the format '{config.sparsity_config['format']}'")
    if config.transform_config and config.transform_config.get("config_groups"):
        raise unsupported("quantization_config.transform_config", "rotations of activations")
    return config


def _has_int8_activations(group: _Group, where: str) -> bool:
    activations = group.input_activations
    if group.output_activations is not None:
        raise unsupported(where, "rounded outputs")
    if activations is None:
        return False
    is_ours = activations.num_bits == 8 and activations.type == "int" and activations.symmetric  # noqa: PLR2004
    if not is_ours or activations.effective_strategy != "token" or activations.dynamic is not True:
        kind = f"{'dynamic' if activations.dynamic else 'static'} {activations.type}{activations.num_bits}"
        raise unsupported(where, f"{kind} activations per {activations.effective_strategy}")
    return True


def _is_match(module: str, target: str) -> bool:
    """Whether a target names a linear: by pattern, in full, or by its class."""
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target in {module, _ANY_LINEAR}
