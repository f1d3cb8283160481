"""Quantized checkpoints as their configurations describe them: which linear is stored how. Knows no tensors."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmpq.errors import InvalidInputError
from llmpq.formats import compressed_tensors, gptq
from llmpq.formats.stored import Layout, Quantization, StoredLinear

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from llmpq.model_config import ModelConfig

__all__ = ["Layout", "Quantization", "StoredLinear", "parse_quantization", "quantization_of"]

_PARSERS: dict[str, Callable[[Mapping[str, Any]], Quantization]] = {
    "compressed-tensors": compressed_tensors.parse,
    "gptq": gptq.parse,
}


def quantization_of(config: "PretrainedConfig | ModelConfig") -> Quantization | None:
    """How the linears of a model are stored, by name; None if as plain floats. Raises as `parse_quantization`."""
    fields = getattr(config, "quantization_config", None)
    return parse_quantization(fields) if fields else None


def parse_quantization(fields: Mapping[str, Any]) -> Quantization:
    """Reads the `quantization_config` of a model's `config.json`.

    Raises:
        InvalidInputError: A method, or a variant of it, that is not known; the message says which are.
    """
    method = str(fields.get("quant_method", ""))
    if method not in _PARSERS:
        raise InvalidInputError(
            f"Cannot read weights of quant_method '{method}'; known are {', '.join(_PARSERS)}. "
            "Take the model that was not quantized: llmpq quantizes it as it loads.",
            reason="UNKNOWN_QUANTIZATION",
            subject="quantization_config.quant_method",
        )
    return _PARSERS[method](fields)
