"""Tiny random models on disk, with weights that 16 bits hold exactly, so that w16 equals transformers' fp32."""

from collections.abc import Callable

from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

VOCABULARY = 199

SaveModel = Callable[[str], tuple[str, PreTrainedModel]]


def _llama(**overrides: object) -> PreTrainedModel:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | overrides)))


def _opt(**overrides: object) -> PreTrainedModel:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    return OPTForCausalLM(OPTConfig(**(settings | overrides)))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama-gqa-untied": _llama,
    "llama-mha-tied": lambda: _llama(num_key_value_heads=4, tie_word_embeddings=True),
    "llama-bias": lambda: _llama(attention_bias=True, mlp_bias=False),
    "opt": _opt,
    "opt-post-norm": lambda: _opt(do_layer_norm_before=False),
}
