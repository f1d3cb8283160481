"""What a decoder-only transformer is made of, as data: families differ in this and in nothing else."""

from dataclasses import dataclass
from enum import Enum

import torch


class NormKind(Enum):
    """How a norm is computed."""

    RMS = "rms"
    LAYER = "layer"


@dataclass(frozen=True)
class TensorNames:
    """Names in a Hugging Face checkpoint; `{}` stands for the layer index. Linears come without `.weight`/`.bias`.

    Attributes:
        qkv: Query, key and value projections, in this order.
        ffn_in: Gate and up projection, in this order, or the one input projection.
        position_embedding: None without learned positions.
        final_norm: None without one.
    """

    token_embedding: str
    position_embedding: str | None
    attention_norm: str
    qkv: tuple[str, str, str]
    attention_out: str
    ffn_norm: str
    ffn_in: tuple[str, ...]
    ffn_out: str
    final_norm: str | None
    head: str


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer.

    Attributes:
        activation: Name of the feed-forward activation as transformers spells it.
        is_pre_norm: Norms stand before attention and feed-forward; otherwise after their residual sums.
        biased: Roles (as in LayerLinears) of the linears that have biases.
        rotary_frequencies: (head_dim / 2,) float32 angle per position and channel pair; None without rotary positions.
        rotary_scale: Factor on the rotated queries and keys (1 but for some long-context variants).
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
    norm_kind: NormKind
    norm_eps: float
    activation: str
    is_pre_norm: bool
    is_gated: bool
    biased: frozenset[str]
    is_tied: bool
    rotary_frequencies: torch.Tensor | None = None
    rotary_scale: float = 1.0
    position_offset: int = 0

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Output features of the query, key and value projections."""
        kv_size = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, kv_size, kv_size
