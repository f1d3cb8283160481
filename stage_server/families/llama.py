"""The line of Llama: RMS norms, rotary positions, gated feed-forward; Mistral, Qwen and Phi-3 differ from it little."""

from dataclasses import replace
from typing import Any

from llmpq.families import linear_names
from stage_server.families.rotary import rotary_of
from stage_server.families.spec import DecoderSpec, LayerKind, NormKind, RotarySpec, TensorNames, dimensions

NAMES = TensorNames(
    prefixes=("model.", ""),
    token_embedding="embed_tokens",  # noqa: S106 a tensor's name
    layer="layers.{}.",
    linears=linear_names("llama").by_role,
    norms={"attention": "input_layernorm", "ffn": "post_attention_layernorm"},
    final_norm="norm",
)
#: Norms of queries and keys, head by head.
HEAD_NORMS = {"query": "self_attn.q_norm", "key": "self_attn.k_norm"}


def describe_llama(config: Any) -> DecoderSpec:
    """The spec of a `LlamaConfig`."""
    return describe_gated(config, (rotary_of(config),))


def describe_mistral(config: Any) -> DecoderSpec:
    """The spec of a `MistralConfig`: a sliding window in every layer, or in none."""
    rotaries = (rotary_of(config),)
    return describe_gated(config, rotaries, layers=_windowed_everywhere(config))


def describe_qwen2(config: Any) -> DecoderSpec:
    """The spec of a `Qwen2Config`: queries, keys and values have biases; the last layers may have sliding windows."""
    rotaries = (rotary_of(config),)
    return describe_gated(config, rotaries, layers=windowed_by_type(config))


def describe_qwen3(config: Any) -> DecoderSpec:
    """The spec of a `Qwen3Config`: norms on queries and keys; the last layers may have sliding windows."""
    rotaries = (rotary_of(config),)
    names = replace(NAMES, norms={**NAMES.norms, **HEAD_NORMS})
    return describe_gated(config, rotaries, names=names, layers=windowed_by_type(config))


def describe_phi3(config: Any) -> DecoderSpec:
    """The spec of a `Phi3Config`: fused projections, a sliding window, heads that may be rotated in part."""
    rotaries = (rotary_of(config, is_partial=True),)
    names = replace(NAMES, linears=linear_names("phi3").by_role)
    return describe_gated(config, rotaries, names=names, layers=_windowed_everywhere(config))


def describe_gated(config: Any, rotaries: tuple[RotarySpec, ...], **differences: Any) -> DecoderSpec:
    """The spec of a model of this line; `differences` are fields in which its family differs from Llama."""
    llama = {
        "names": NAMES,
        "norm_kind": NormKind.RMS,
        "norm_eps": config.rms_norm_eps,
        "activation": getattr(config, "hidden_act", None),
        "layers": (LayerKind(rotary=0),) * config.num_hidden_layers,
    }
    return DecoderSpec(**(dimensions(config) | llama | differences), rotaries=rotaries)


def windowed_by_type(config: Any) -> tuple[LayerKind, ...]:
    """Layers of which some have a sliding window; raises KeyError for a type of layer that is not known."""
    kinds = {
        "full_attention": LayerKind(rotary=0),
        "sliding_attention": LayerKind(window=config.sliding_window, rotary=0),
    }
    return tuple(kinds[layer_type] for layer_type in config.layer_types)


def _windowed_everywhere(config: Any) -> tuple[LayerKind, ...]:
    kind = LayerKind(window=config.sliding_window, rotary=0)
    return tuple(kind for _ in range(config.num_hidden_layers))
