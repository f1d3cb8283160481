"""Gemma: as Llama, with scaled embeddings, norms that lack 1, and from Gemma 2 on norms on both sides of each block."""

import math
from dataclasses import replace
from typing import Any

from stage_server.families.llama import HEAD_NORMS, NAMES, describe_gated, windowed_by_type
from stage_server.families.rotary import rotary_of
from stage_server.families.spec import DecoderSpec

_SANDWICH_NORMS = {
    "attention": "input_layernorm",
    "attention_out": "post_attention_layernorm",
    "ffn": "pre_feedforward_layernorm",
    "ffn_out": "post_feedforward_layernorm",
}
#: The text model inside a Gemma 3 with a vision tower, as transformers has named it over time.
_PREFIXES = ("model.", "language_model.model.", "model.language_model.")


def describe_gemma(config: Any) -> DecoderSpec:
    """The spec of a `GemmaConfig`."""
    return describe_gated(config, (rotary_of(config),), **_common(config))


def describe_gemma2(config: Any) -> DecoderSpec:
    """The spec of a `Gemma2Config`: soft caps, a sliding window in every other layer."""
    return describe_gated(
        config,
        (rotary_of(config),),
        names=replace(NAMES, norms=_SANDWICH_NORMS),
        layers=windowed_by_type(config),
        **_common(config),
        **_since_gemma2(config),
    )


def describe_gemma3(config: Any) -> DecoderSpec:
    """The spec of a `Gemma3TextConfig`: norms on queries and keys; a rotation of their own for layers with a window."""
    kinds = {layer_type: rotary for rotary, layer_type in enumerate(sorted(set(config.layer_types)))}
    return describe_gated(
        config,
        tuple(rotary_of(config, layer_type) for layer_type in kinds),
        names=replace(NAMES, prefixes=_PREFIXES, norms=_SANDWICH_NORMS | HEAD_NORMS),
        layers=tuple(
            replace(kind, rotary=kinds[layer_type])
            for kind, layer_type in zip(windowed_by_type(config), config.layer_types, strict=True)
        ),
        **_common(config),
        **_since_gemma2(config),
    )


def _common(config: Any) -> dict[str, Any]:
    if config.use_bidirectional_attention:
        raise ValueError("use_bidirectional_attention is not supported")
    return {"embedding_scale": math.sqrt(config.hidden_size), "norm_offset": 1.0}


def _since_gemma2(config: Any) -> dict[str, Any]:
    return {
        "activation": config.hidden_activation,  # and not hidden_act, which old configurations have besides
        "attention_scale": config.query_pre_attn_scalar**-0.5,
        "attention_soft_cap": config.attn_logit_softcapping,
        "logit_soft_cap": config.final_logit_softcapping,
    }
