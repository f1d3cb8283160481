"""The model families that can be run, and what each one's size depends on beside its configuration's plain numbers.

How a family computes is in `stage_server/families`; that both agree is what tests of the memory formula show.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: The weight matrices of a decoder layer; those that read the same input are stacked into one.
ATTENTION_LINEARS = frozenset({"qkv", "attention_out"})
FFN_LINEARS = frozenset({"ffn_in", "ffn_out"})

_BLOOM_CONTEXT = 2048

_SEPARATE = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_out": ("self_attn.o_proj",),
    "ffn_in": ("mlp.gate_proj", "mlp.up_proj"),
    "ffn_out": ("mlp.down_proj",),
}


@dataclass(frozen=True)
class LinearNames:
    """What transformers calls the linears of a decoder layer.

    Attributes:
        layer: Stands before each; `{}` is the layer's index.
        by_role: The modules whose rows, one after another, are the stacked matrix of a role: query, key and value; gate
            and up projection; or the one module that has them stacked already.
    """

    layer: str = "model.layers.{}."
    by_role: Mapping[str, tuple[str, ...]] = field(default_factory=_SEPARATE.copy)

    @property
    def all(self) -> tuple[str, ...]:
        """Every module of a layer."""
        return tuple(name for names in self.by_role.values() for name in names)


@dataclass(frozen=True)
class Traits:
    """What tells families apart in size.

    Attributes:
        intermediate_size: Width of the feed-forward network.
        is_gated: Whether it has a third, gating matrix.
        biased: Roles of the linears that have biases.
        num_norms: Norms over the residual stream in one layer.
        vectors_per_norm: 1 for a weight, 2 for a weight and a bias, 0 for neither.
        has_head_norms: Whether queries and keys are normed, head by head.
        has_embedding_norm: Whether the embedding is.
        has_final_norm: Whether the last hidden states are.
        max_positions: Longest sequence.
        learned_positions: Rows of a learned position embedding.
        projected_embedding_size: Width of an embedding that is projected to the residual stream; 0 if it is not.
    """

    intermediate_size: int
    max_positions: int
    is_gated: bool = True
    biased: frozenset[str] = frozenset()
    num_norms: int = 2
    vectors_per_norm: int = 1
    has_head_norms: bool = False
    has_embedding_norm: bool = False
    has_final_norm: bool = True
    learned_positions: int = 0
    projected_embedding_size: int = 0


def traits_of(config: "PretrainedConfig") -> Traits:
    """The traits of a model of one of KNOWN_FAMILIES; raises KeyError for any other."""
    return _TRAITS[config.model_type](config)


def linear_names(family: str) -> LinearNames:
    """The names of a family's linears."""
    return _LINEAR_NAMES.get(family, LinearNames())


def _opt(config: "PretrainedConfig") -> Traits:
    is_projected = config.word_embed_proj_dim != config.hidden_size
    return Traits(
        intermediate_size=config.ffn_dim,
        max_positions=config.max_position_embeddings,
        is_gated=False,
        biased=ATTENTION_LINEARS | FFN_LINEARS if config.enable_bias else frozenset(),
        vectors_per_norm=2 if config.layer_norm_elementwise_affine else 0,
        has_final_norm=config.do_layer_norm_before and not config._remove_final_layer_norm,  # noqa: SLF001 its only name
        learned_positions=config.max_position_embeddings + 2,  # the first two rows belong to padding
        projected_embedding_size=config.word_embed_proj_dim if is_projected else 0,
    )


def _bloom(config: "PretrainedConfig") -> Traits:
    return Traits(
        intermediate_size=4 * config.hidden_size,
        # Linear biases set no limit; this is the context that BLOOM was trained with.
        max_positions=getattr(config, "seq_length", None) or _BLOOM_CONTEXT,
        is_gated=False,
        biased=ATTENTION_LINEARS | FFN_LINEARS,
        vectors_per_norm=2,
        has_embedding_norm=True,
    )


def _gated(config: "PretrainedConfig", **differences: Any) -> Traits:
    """The line of Llama: a gated feed-forward network and RMS norms."""
    return Traits(config.intermediate_size, _max_rotary_positions(config), **differences)


def _llama(config: "PretrainedConfig") -> Traits:
    ffn = FFN_LINEARS if config.mlp_bias else frozenset()
    return _gated(config, biased=_attention_biases(config) | ffn)


def _qwen3(config: "PretrainedConfig") -> Traits:
    return _gated(config, biased=_attention_biases(config), has_head_norms=True)


def _gemma(config: "PretrainedConfig") -> Traits:
    return _gated(config, biased=_attention_biases(config))


def _gemma2(config: "PretrainedConfig") -> Traits:
    return _gated(config, biased=_attention_biases(config), num_norms=4)


def _gemma3(config: "PretrainedConfig") -> Traits:
    return _gated(config, biased=_attention_biases(config), num_norms=4, has_head_norms=True)


def _attention_biases(config: "PretrainedConfig") -> frozenset[str]:
    return ATTENTION_LINEARS if config.attention_bias else frozenset()


def _max_rotary_positions(config: "PretrainedConfig") -> int:
    """The context, or as much of it as one set of rotary frequencies serves.

    LongRoPE (arXiv 2402.13753) has one set for short sequences and one for long ones. A sequence that grows from one
    into the other would have to be computed anew from its first token, so only the short one is served.
    """
    rotary = config.rope_parameters or {}
    longest: int = config.max_position_embeddings
    if rotary.get("rope_type") == "longrope":
        longest = min(longest, rotary["original_max_position_embeddings"])
    return longest


_LINEAR_NAMES = {
    "bloom": LinearNames(
        "transformer.h.{}.",
        {
            "qkv": ("self_attention.query_key_value",),
            "attention_out": ("self_attention.dense",),
            "ffn_in": ("mlp.dense_h_to_4h",),
            "ffn_out": ("mlp.dense_4h_to_h",),
        },
    ),
    "opt": LinearNames(
        "model.decoder.layers.{}.",
        _SEPARATE | {"attention_out": ("self_attn.out_proj",), "ffn_in": ("fc1",), "ffn_out": ("fc2",)},
    ),
    "phi3": LinearNames(by_role=_SEPARATE | {"qkv": ("self_attn.qkv_proj",), "ffn_in": ("mlp.gate_up_proj",)}),
}

_TRAITS: dict[str, Callable[["PretrainedConfig"], Traits]] = {
    "bloom": _bloom,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "llama": _llama,
    "mistral": _gated,
    "opt": _opt,
    "phi3": _gated,
    "qwen2": lambda config: _gated(config, biased=frozenset({"qkv"})),
    "qwen3": _qwen3,
}

#: Families that stage servers can run, by `model_type`.
KNOWN_FAMILIES = tuple(_TRAITS)
