"""What a decoder-only transformer is made of, as data: families differ in this and in nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from llmpq.families import traits_of


class NormKind(Enum):
    """How a norm is computed."""

    RMS = "rms"
    LAYER = "layer"


@dataclass(frozen=True)
class TensorNames:
    """Names in a Hugging Face checkpoint, without `.weight` and `.bias`.

    Attributes:
        prefixes: What may stand before every name but the head's; the first is what transformers writes.
        token_embedding: None of these may be missing in a checkpoint, unless said otherwise.
        layer: Stands before the names of `linears` and `norms`; `{}` is the layer's index.
        linears: By role (as in LayerLinears) the modules whose rows, one after another, are the stacked matrix: query,
            key and value; gate and up projection; or the one module that has them stacked already.
        norms: By role (as in LayerNorms).
        final_norm: None without one; likewise the following ones.
        head: Missing in a checkpoint if the head is the embedding.
    """

    prefixes: tuple[str, ...]
    token_embedding: str
    layer: str
    linears: Mapping[str, tuple[str, ...]]
    norms: Mapping[str, str]
    final_norm: str | None
    head: str = "lm_head"
    position_embedding: str | None = None
    embedding_norm: str | None = None
    embedding_projection: str | None = None
    head_projection: str | None = None


@dataclass(frozen=True)
class RotarySpec:
    """A rotation of queries and keys by their positions.

    Attributes:
        frequencies: Float32 (rotated channels / 2,) angle per position and channel pair; channels behind them stay.
        scale: Factor on the rotated channels (1 but for some long-context variants).
    """

    frequencies: torch.Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class LayerKind:
    """What tells the layers of one model apart.

    Attributes:
        window: How many tokens a query sees, its own the last of them; None is all.
        rotary: Which of the model's rotations; None is none.
    """

    window: int | None = None
    rotary: int | None = None


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer.

    Attributes:
        biased: Roles (as in LayerLinears) of the linears that have biases.
        norm_kind: Of all norms.
        activation: Name of the feed-forward activation as transformers spells it.
        layers: The kind of each layer.
        attention_scale: Factor on the products of queries and keys.
        rotaries: The rotations that layers choose from.
        alibi_slopes: (heads,) float32 bias per position of distance (arXiv 2108.12409); None without.
        attention_soft_cap: c of `c tanh(score / c)` on attention scores; None without.
        logit_soft_cap: The same on the model's logits.
        is_pre_norm: Norms stand before attention and feed-forward; otherwise after their residual sums.
        has_norm_weights: Whether norms have weights (and, as layer norms, biases).
        norm_offset: What a norm's stored weight lacks.
        is_qkv_by_head: Whether the checkpoint stacks query, key and value of one head, then of the next.
        embedding_scale: Factor on embedded tokens.
        position_offset: Row of the learned position embedding that belongs to position 0.
    """

    names: TensorNames
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    is_gated: bool
    is_tied: bool
    biased: frozenset[str]
    norm_kind: NormKind
    norm_eps: float
    activation: str
    layers: tuple[LayerKind, ...]
    attention_scale: float
    rotaries: tuple[RotarySpec, ...] = ()
    alibi_slopes: torch.Tensor | None = None
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    is_pre_norm: bool = True
    has_norm_weights: bool = True
    norm_offset: float = 0.0
    is_qkv_by_head: bool = False
    embedding_scale: float = 1.0
    position_offset: int = 0

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Output features of the query, key and value projections."""
        kv_size = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, kv_size, kv_size


def dimensions(config: Any) -> dict[str, Any]:
    """The fields of a spec that say how large the model is, as `llmpq.model` reads them."""
    shape = config.shape
    return {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_positions": shape.max_positions,
        "is_gated": shape.gated_ffn,
        "is_tied": shape.tied_embeddings,
        "biased": traits_of(config).biased,
        "attention_scale": shape.head_dim**-0.5,
        "layers": (LayerKind(),) * shape.num_layers,
    }
