"""Tiny random models on disk, with weights that 16 bits hold exactly, so that w16 equals transformers' fp32."""

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers
from transformers import PreTrainedModel

VOCABULARY = 199
#: Tokens that a query of a windowed layer sees: fewer than the tests' sequences have.
WINDOW = 6

SaveModel = Callable[[str], tuple[str, PreTrainedModel]]

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GATED = _COMMON | {"intermediate_size": 96, "num_key_value_heads": 2}
_MIXED_WINDOWS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def _model(family: str, settings: dict[str, Any], **overrides: object) -> PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(**(settings | overrides))
    return getattr(transformers, f"{_class_name(family)}ForCausalLM")(config)


def _class_name(family: str) -> str:
    """The name of a family's models, where its configurations have another one."""
    return family.removesuffix("Text")


_llama = partial(_model, "Llama", _GATED)
_opt = partial(_model, "OPT", _COMMON | {"word_embed_proj_dim": 64, "ffn_dim": 96})
_bloom = partial(_model, "Bloom", {key: value for key, value in _COMMON.items() if key != "max_position_embeddings"})
_mistral = partial(_model, "Mistral", _GATED | {"sliding_window": None})
_qwen2 = partial(_model, "Qwen2", _GATED)
#: As in Qwen3 and Gemma, heads are not `hidden_size / num_heads` wide.
_qwen3 = partial(_model, "Qwen3", _GATED | {"head_dim": 32})
_gemma = partial(_model, "Gemma", _GATED | {"head_dim": 32})
_gemma2 = partial(_model, "Gemma2", _GATED | _MIXED_WINDOWS | {"head_dim": 32, "query_pre_attn_scalar": 32})
_gemma3 = partial(_model, "Gemma3Text", _GATED | _MIXED_WINDOWS | {"head_dim": 32, "query_pre_attn_scalar": 24})
_phi3 = partial(_model, "Phi3", _GATED)


def _rope(rope_type: str, **settings: object) -> dict[str, object]:
    return {"rope_type": rope_type, "rope_theta": 1e4, **settings}


_LONGROPE = _rope(
    "longrope",
    short_factor=[1.0 + 0.1 * pair for pair in range(4)],
    long_factor=[2.0 + pair for pair in range(4)],
    original_max_position_embeddings=64,
    partial_rotary_factor=0.5,
)
_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bloom": _bloom,
    "bloom-odd-heads": partial(_bloom, num_attention_heads=6, hidden_size=96),
    "gemma": _gemma,
    "gemma2": partial(_gemma2, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma2-two-activations": partial(_gemma2, hidden_activation="gelu_pytorch_tanh", hidden_act="relu"),
    "gemma2-uncapped-untied": partial(
        _gemma2,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        tie_word_embeddings=False,
        query_pre_attn_scalar=24,
    ),
    "gemma3": _gemma3,
    "gemma3-two-activations": partial(_gemma3, hidden_activation="gelu_pytorch_tanh", hidden_act="silu"),
    "gemma3-scaled": partial(
        _gemma3,
        num_hidden_layers=7,
        layer_types=None,
        query_pre_attn_scalar=32,
        rope_parameters={
            "sliding_attention": _rope("default"),
            "full_attention": _rope("linear", factor=8.0) | {"rope_theta": 1e6},
        },
    ),
    "llama-gqa-untied": _llama,
    "llama-mha-tied": partial(_llama, num_key_value_heads=4, tie_word_embeddings=True),
    "llama-bias": partial(_llama, attention_bias=True, mlp_bias=True),
    "llama-3-rope": partial(_llama, rope_parameters=_LLAMA3),
    "llama-dynamic-rope": partial(_llama, rope_parameters=_rope("dynamic", factor=4.0)),
    "mistral": _mistral,
    "mistral-window": partial(_mistral, sliding_window=WINDOW, head_dim=32),
    "opt": _opt,
    "opt-350m": partial(_opt, do_layer_norm_before=False, word_embed_proj_dim=48),
    "opt-bare": partial(_opt, enable_bias=False, layer_norm_elementwise_affine=False, tie_word_embeddings=False),
    "phi3": _phi3,
    "phi3-window-partial": partial(
        _phi3, sliding_window=WINDOW, rope_parameters=_rope("default", partial_rotary_factor=0.5)
    ),
    "phi3-longrope": partial(_phi3, rope_parameters=_LONGROPE, original_max_position_embeddings=64),
    "qwen2": _qwen2,
    "qwen2-yarn": partial(_qwen2, rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    "qwen2-window": partial(_qwen2, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": partial(_qwen3, tie_word_embeddings=True),
    "qwen3-window-bias": partial(
        _qwen3, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2, attention_bias=True
    ),
}
