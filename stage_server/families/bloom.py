"""BLOOM: layer norms, one of them behind the embedding, linear biases for positions, queries, keys and values fused."""

from typing import Any

import torch

from llmpq.families import linear_names
from stage_server.families.spec import DecoderSpec, NormKind, TensorNames, dimensions

_NAMES = TensorNames(
    prefixes=("transformer.", ""),
    token_embedding="word_embeddings",  # noqa: S106 a tensor's name
    embedding_norm="word_embeddings_layernorm",
    layer="h.{}.",
    linears=linear_names("bloom").by_role,
    norms={"attention": "input_layernorm", "ffn": "post_attention_layernorm"},
    final_norm="ln_f",
)


def describe(config: Any) -> DecoderSpec:
    """The spec of a `BloomConfig`; transformers computes the slopes of the biases.

    Raises:
        ValueError: The residual is taken behind the norms, which no published BLOOM does.
    """
    if config.apply_residual_connection_post_layernorm:
        raise ValueError("apply_residual_connection_post_layernorm is not supported")
    return DecoderSpec(
        names=_NAMES,
        **dimensions(config),
        norm_kind=NormKind.LAYER,
        norm_eps=config.layer_norm_epsilon,
        activation="gelu_pytorch_tanh",
        alibi_slopes=_slopes(config.n_head),
        is_qkv_by_head=True,
    )


def _slopes(num_heads: int) -> torch.Tensor:
    """(heads,): the bias of position 1 over that of position 0."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor  # noqa: PLC0415 takes seconds

    return build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)[:, 0, 1]
