"""A model's configuration as plain data."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from llmpq.model import ModelShape


class ModelConfig:
    """The attributes of a transformers configuration without its class, which takes seconds to import.

    Args:
        fields: The attributes.
        aliases: Other names that the class has for some of them.
        shape: The dimensions that it describes.
    """

    def __init__(self, fields: Mapping[str, Any], aliases: Mapping[str, str], shape: "ModelShape") -> None:
        self._fields = fields
        self._aliases = aliases
        self.shape = shape

    def __getattr__(self, name: str) -> Any:
        """An attribute, or one that has this name besides."""
        fields, aliases = vars(self).get("_fields", {}), vars(self).get("_aliases", {})
        try:
            return fields[aliases.get(name, name)]
        except KeyError:
            raise AttributeError(f"The model's configuration has no '{name}'.") from None

    def as_transformers(self) -> "PretrainedConfig":
        """The configuration that this is the data of."""
        from transformers import CONFIG_MAPPING  # noqa: PLC0415 takes seconds, and few models need it

        config: PretrainedConfig = CONFIG_MAPPING[self.model_type].from_dict(dict(self._fields))
        return config


def plain_config(config: "PretrainedConfig", shape: "ModelShape") -> dict[str, Any]:
    """A configuration as what JSON can hold: its `fields`, their `aliases`, and its `shape`."""
    return {"fields": config.to_dict(), "aliases": dict(config.attribute_map), "shape": asdict(shape)}
