"""A model's configuration out of a GGUF file, as the transformers class of its family has it.

transformers reads such files too, but of several families only part of what they say (not the head width of Qwen3, no
soft caps, no rotary scaling, no sliding window of Phi-3), so that some checkpoints come out wrong. What files hold is
what llama.cpp's converter writes; what that leaves out because llama.cpp knows it is known here too.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmpq.errors import InvalidInputError
from llmpq.gguf_file import GgufFile

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Settings by which a file asks for what no family here does, and the values that ask for nothing.
_NEUTRAL = {"expert_count": 0, "logit_scale": 1, "embedding_scale": 1, "residual_scale": 1, "attention.clamp_kqv": 0}
#: The largest Gemmas scale queries by hidden_size / num_heads, all others by head_dim; files do not say so.
_GEMMA2_27B_LAYERS, _GEMMA3_27B_LAYERS = 46, 62

Settings = dict[str, Any]


def config_of(file: GgufFile) -> "PretrainedConfig":
    """The configuration of a GGUF file.

    Raises:
        InvalidInputError: An architecture or variant that is not known, or a field that is missing; names it.
    """
    from transformers import AutoConfig  # noqa: PLC0415 takes a second, and most processes never need it

    if file.architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise _unsupported(file, f"GGUF architecture '{file.architecture}'", known, reason="UNKNOWN_FAMILY")
    for key, neutral in _NEUTRAL.items():
        if file.get(key, neutral) != neutral:
            raise _unsupported(file, f"{key} {file.get(key)}", str(neutral))
    model_type, read = _ARCHITECTURES[file.architecture]
    config: PretrainedConfig = AutoConfig.for_model(model_type, **read(file), **_tokens(file))
    return config


def _tokens(file: GgufFile) -> Settings:
    return {
        "bos_token_id": file.token_id("bos"),
        "eos_token_id": file.token_id("eos"),
        "pad_token_id": file.token_id("padding"),
        "vocab_size": file.num_rows("token_embd.weight"),
    }


def _bloom(file: GgufFile) -> Settings:
    return {
        "n_layer": file.setting("block_count"),
        "n_head": file.setting("attention.head_count"),
        "hidden_size": file.setting("embedding_length"),
        "layer_norm_epsilon": file.setting("attention.layer_norm_epsilon"),
    }


def _gated(file: GgufFile) -> Settings:
    """The line of Llama."""
    hidden_size, num_heads = file.setting("embedding_length"), file.setting("attention.head_count")
    return {
        "num_hidden_layers": file.setting("block_count"),
        "hidden_size": hidden_size,
        "intermediate_size": file.setting("feed_forward_length"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": file.get("attention.head_count_kv", num_heads),
        "head_dim": file.get("attention.key_length", hidden_size // num_heads),
        "rms_norm_eps": file.setting("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": file.setting("context_length"),
        "rope_parameters": _rotary(file),
        "tie_word_embeddings": not file.has("output.weight"),
    }


def _llama(file: GgufFile) -> Settings:
    return _gated(file) | {
        "attention_bias": file.has("blk.0.attn_q.bias"),
        "mlp_bias": file.has("blk.0.ffn_up.bias"),
    }


def _phi3(file: GgufFile) -> Settings:
    settings = _gated(file)
    rotary = settings["rope_parameters"]
    rotary["partial_rotary_factor"] = file.get("rope.dimension_count", settings["head_dim"]) / settings["head_dim"]
    original = file.get("rope.scaling.original_context_length", settings["max_position_embeddings"])
    if file.has("rope_factors_long.weight"):
        rotary |= {
            "rope_type": "longrope",
            "long_factor": file.values("rope_factors_long.weight").tolist(),
            "short_factor": file.values("rope_factors_short.weight").tolist(),
            "attention_factor": file.setting("rope.scaling.attn_factor"),
            "original_max_position_embeddings": original,
        }
    window = file.get("attention.sliding_window") or None  # files say 0 for none
    return settings | {"sliding_window": window, "original_max_position_embeddings": original}


def _gemma2(file: GgufFile) -> Settings:
    return _gated(file) | {
        "query_pre_attn_scalar": _query_scalar(file, _GEMMA2_27B_LAYERS),
        "sliding_window": file.setting("attention.sliding_window"),
        "attn_logit_softcapping": file.get("attn_logit_softcapping"),
        "final_logit_softcapping": file.get("final_logit_softcapping"),
    }


def _gemma3(file: GgufFile) -> Settings:
    settings = _gated(file)
    local = {"rope_type": "default", "rope_theta": file.get("rope.freq_base_swa", 10_000.0)}
    return settings | {
        "query_pre_attn_scalar": _query_scalar(file, _GEMMA3_27B_LAYERS),
        "sliding_window": file.get("attention.sliding_window"),
        "layer_types": _gemma3_layers(file),
        "final_logit_softcapping": file.get("final_logit_softcapping"),
        "rope_parameters": {"full_attention": settings["rope_parameters"], "sliding_attention": local},
    }


def _gemma3_layers(file: GgufFile) -> list[str]:
    """Every sixth layer sees everything, unless the file says otherwise."""
    num_layers = file.setting("block_count")
    has_window = file.get("attention.sliding_window") is not None
    pattern = file.get("attention.sliding_window_pattern", 6)
    is_sliding = pattern if isinstance(pattern, list) else [(index + 1) % pattern != 0 for index in range(num_layers)]
    return ["sliding_attention" if has_window and slides else "full_attention" for slides in is_sliding]


def _query_scalar(file: GgufFile, exceptional_layers: int) -> int:
    """Whose inverse root scales attention scores."""
    hidden_size, num_heads = file.setting("embedding_length"), file.setting("attention.head_count")
    if file.setting("block_count") == exceptional_layers:
        return int(hidden_size // num_heads)
    return int(file.get("attention.key_length", hidden_size // num_heads))


def _rotary(file: GgufFile) -> Settings:
    """Rotary parameters in the terms of transformers."""
    theta = file.get("rope.freq_base", 10_000.0)
    scaling = file.get("rope.scaling.type", "none")
    if file.has("rope_freqs.weight"):
        # Llama 3.1's scaling, written out as a divisor of each frequency; LongRoPE has the same form.
        divisors = file.values("rope_freqs.weight").tolist()
        context = file.setting("context_length")
        return {
            "rope_type": "longrope",
            "rope_theta": theta,
            "long_factor": divisors,
            "short_factor": divisors,
            "factor": 1.0,
            "original_max_position_embeddings": context,
        }
    if scaling == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": file.setting("rope.scaling.factor")}
    if scaling not in {"none", "longrope"}:
        raise _unsupported(file, f"rotary scaling '{scaling}'", "none, linear, longrope")
    return {"rope_type": "default", "rope_theta": theta}


def _unsupported(file: GgufFile, what: str, known: str, reason: str = "UNSUPPORTED_VARIANT") -> InvalidInputError:
    message = f"{what} in {file.path.name} is not supported; known: {known}."
    return InvalidInputError(message, reason=reason, subject="model")


_ARCHITECTURES: dict[str, tuple[str, Callable[[GgufFile], Settings]]] = {
    "bloom": ("bloom", _bloom),
    "gemma": ("gemma", _gated),
    "gemma2": ("gemma2", _gemma2),
    "gemma3": ("gemma3_text", _gemma3),
    "llama": ("llama", _llama),
    "phi3": ("phi3", _phi3),
    "qwen2": ("qwen2", _gated),
    "qwen3": ("qwen3", _gated),
}
