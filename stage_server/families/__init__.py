"""The model families, each described by data: add a module with a `describe` function and list it here."""

from typing import TYPE_CHECKING

from llmpq.errors import InvalidInputError
from stage_server.activations import ACTIVATIONS
from stage_server.families import bloom, gemma, llama, opt
from stage_server.families.spec import DecoderSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_DESCRIBE = {
    "bloom": bloom.describe,
    "gemma": gemma.describe_gemma,
    "gemma2": gemma.describe_gemma2,
    "gemma3_text": gemma.describe_gemma3,
    "llama": llama.describe_llama,
    "mistral": llama.describe_mistral,
    "opt": opt.describe,
    "phi3": llama.describe_phi3,
    "qwen2": llama.describe_qwen2,
    "qwen3": llama.describe_qwen3,
}

__all__ = ["DecoderSpec", "describe"]


def describe(config: "PretrainedConfig") -> DecoderSpec:
    """What one decoder block of this model is, and how the checkpoint names its tensors.

    Raises:
        InvalidInputError: A family that is not known, or a variant of it that is not; the message says which are.
    """
    if config.model_type not in _DESCRIBE:
        known = ", ".join(_DESCRIBE)
        raise InvalidInputError(
            f"Family '{config.model_type}' is not known; known families: {known}.",
            reason="UNKNOWN_FAMILY",
            subject="model",
        )
    try:
        spec = _DESCRIBE[config.model_type](config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unsupported(f"its configuration is wrong or of an unknown variant ({error!r})") from error
    if spec.activation not in ACTIVATIONS:
        raise _unsupported(f"its activation '{spec.activation}' is not among {', '.join(ACTIVATIONS)}")
    return spec


def _unsupported(why: str) -> InvalidInputError:
    return InvalidInputError(f"Cannot run this model: {why}.", reason="UNSUPPORTED_VARIANT", subject="model")
