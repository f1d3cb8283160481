"""OPT: layer norms, learned positions, ungated feed-forward, biases everywhere."""

from typing import Any

from llmpq.families import linear_names, traits_of
from stage_server.families.spec import DecoderSpec, NormKind, TensorNames, dimensions


def describe(config: Any) -> DecoderSpec:
    """The spec of an `OPTConfig`."""
    return DecoderSpec(
        names=_names(config),
        **dimensions(config),
        norm_kind=NormKind.LAYER,
        norm_eps=1e-5,
        activation=config.activation_function,
        is_pre_norm=config.do_layer_norm_before,
        has_norm_weights=config.layer_norm_elementwise_affine,
        position_offset=2,  # the first rows belong to padding
    )


def _names(config: Any) -> TensorNames:
    traits = traits_of(config)
    return TensorNames(
        prefixes=("model.decoder.", "decoder."),
        token_embedding="embed_tokens",  # noqa: S106 a tensor's name
        position_embedding="embed_positions",
        embedding_projection="project_in" if traits.projected_embedding_size else None,
        layer="layers.{}.",
        linears=linear_names("opt").by_role,
        norms={"attention": "self_attn_layer_norm", "ffn": "final_layer_norm"},
        final_norm="final_layer_norm" if traits.has_final_norm else None,
        head_projection="project_out" if traits.projected_embedding_size else None,
    )
