"""Models by name, without weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from pydantic import ConfigDict, PositiveInt

from llmpq.errors import InvalidInputError
from llmpq.families import KNOWN_FAMILIES
from llmpq.model import ModelShape, shape_of


@dataclass(frozen=True)
class ModelSheet:
    """A model as `models.yaml` describes it.

    Attributes:
        config: The fields of its `config.json` that its dimensions follow from, `model_type` among them.
        parameters: How many it has, as published.
        source: Where the two come from.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    config: Mapping[str, Any]
    parameters: PositiveInt
    source: str = ""

    @cached_property
    def shape(self) -> ModelShape:
        """Its dimensions, read as those of a model on disk are.

        Raises:
            InvalidInputError: A family that stage servers do not know.
        """
        from transformers import AutoConfig  # noqa: PLC0415 takes a second, and a planner of real devices never needs it

        family = self.config.get("model_type", "")
        if family not in KNOWN_FAMILIES:
            known = ", ".join(KNOWN_FAMILIES)
            raise InvalidInputError(f"The family '{family}' is not known; known are: {known}.", subject="model_type")
        fields = {name: value for name, value in self.config.items() if name != "model_type"}
        return shape_of(AutoConfig.for_model(family, **fields))
