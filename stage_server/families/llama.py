"""Llama, as SmolLM2 and TinyLlama are: RMS norms, rotary positions, gated feed-forward, optional grouped queries."""

from typing import Any

from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llmpq.model import shape_of
from stage_server.families.spec import DecoderSpec, NormKind, TensorNames

_NAMES = TensorNames(
    token_embedding="model.embed_tokens.weight",  # noqa: S106 a tensor's name
    position_embedding=None,
    attention_norm="model.layers.{}.input_layernorm",
    qkv=(
        "model.layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.v_proj",
    ),
    attention_out="model.layers.{}.self_attn.o_proj",
    ffn_norm="model.layers.{}.post_attention_layernorm",
    ffn_in=("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
    ffn_out="model.layers.{}.mlp.down_proj",
    final_norm="model.norm",
    head="lm_head",
)


def describe(config: Any) -> DecoderSpec:
    """The spec of a `LlamaConfig`; transformers computes the rotary frequencies, scaled variants included."""
    shape = shape_of(config)
    rotary = LlamaRotaryEmbedding(config)
    return DecoderSpec(
        names=_NAMES,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        max_positions=shape.max_positions,
        norm_kind=NormKind.RMS,
        norm_eps=config.rms_norm_eps,
        activation=config.hidden_act,
        is_pre_norm=True,
        is_gated=True,
        biased=_biased(config),
        is_tied=shape.tied_embeddings,
        rotary_frequencies=rotary.inv_freq.float(),
        rotary_scale=float(rotary.attention_scaling),
    )


def _biased(config: Any) -> frozenset[str]:
    attention = {"qkv", "attention_out"} if config.attention_bias else set()
    return frozenset(attention | ({"ffn_in", "ffn_out"} if config.mlp_bias else set()))
