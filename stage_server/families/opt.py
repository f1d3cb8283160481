"""OPT: layer norms, learned positions, ungated feed-forward, biases everywhere."""

from typing import Any

from llmpq.errors import InvalidInputError
from llmpq.model import shape_of
from stage_server.families.spec import DecoderSpec, NormKind, TensorNames

#: The position embedding's first rows belong to padding.
_POSITION_OFFSET = 2


def describe(config: Any) -> DecoderSpec:
    """The spec of an `OPTConfig`.

    Raises:
        InvalidInputError: A variant with an embedding narrower than the residual stream (OPT-350m).
    """
    shape = shape_of(config)
    if config.word_embed_proj_dim != config.hidden_size:
        raise InvalidInputError(
            f"OPT with word_embed_proj_dim {config.word_embed_proj_dim} != hidden_size {config.hidden_size} "
            "is not supported; every OPT but OPT-350m is.",
            reason="UNSUPPORTED_VARIANT",
            subject="model",
        )
    has_final_norm = config.do_layer_norm_before and not config._remove_final_layer_norm  # noqa: SLF001 its only name
    return DecoderSpec(
        names=_names(has_final_norm=has_final_norm),
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        max_positions=shape.max_positions,
        norm_kind=NormKind.LAYER,
        norm_eps=1e-5,
        activation=config.activation_function,
        is_pre_norm=config.do_layer_norm_before,
        is_gated=False,
        biased=frozenset({"qkv", "attention_out", "ffn_in", "ffn_out"} if config.enable_bias else ()),
        is_tied=shape.tied_embeddings,
        position_offset=_POSITION_OFFSET,
    )


def _names(*, has_final_norm: bool) -> TensorNames:
    layer = "model.decoder.layers.{}."
    return TensorNames(
        token_embedding="model.decoder.embed_tokens.weight",  # noqa: S106 a tensor's name
        position_embedding="model.decoder.embed_positions.weight",
        attention_norm=f"{layer}self_attn_layer_norm",
        qkv=(f"{layer}self_attn.q_proj", f"{layer}self_attn.k_proj", f"{layer}self_attn.v_proj"),
        attention_out=f"{layer}self_attn.out_proj",
        ffn_norm=f"{layer}final_layer_norm",
        ffn_in=(f"{layer}fc1",),
        ffn_out=f"{layer}fc2",
        final_norm="model.decoder.final_layer_norm" if has_final_norm else None,
        head="lm_head",
    )
