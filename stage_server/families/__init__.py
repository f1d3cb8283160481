"""The model families, each described by data.

For a new one add a module with a `describe` function and list it here; its size and the names of its linears go to
`llmpq/families.py`, and, if GGUF files hold it, what they say to `llmpq/gguf_config.py`.
"""

import math

from llmpq.errors import InvalidInputError
from llmpq.model_config import ModelConfig
from stage_server.activations import ACTIVATIONS
from stage_server.families import bloom, gemma, llama, opt
from stage_server.families.spec import DecoderSpec

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


def describe(config: ModelConfig) -> DecoderSpec:
    """What one decoder block of a model of one of KNOWN_FAMILIES is, and how the checkpoint names its tensors.

    Raises:
        InvalidInputError: A variant of its family that is not known; the message says what about it.
    """
    try:
        spec = _DESCRIBE[config.model_type](config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unsupported(f"its configuration is wrong or of an unknown variant ({error!r})") from error
    if spec.activation not in ACTIVATIONS:
        raise _unsupported(f"its activation '{spec.activation}' is not among {', '.join(ACTIVATIONS)}")
    if not 0 <= spec.norm_eps < math.inf:
        raise _unsupported(f"the epsilon of its norms is {spec.norm_eps}")
    return spec


def _unsupported(why: str) -> InvalidInputError:
    return InvalidInputError(f"Cannot run this model: {why}.", reason="UNSUPPORTED_VARIANT", subject="model")
