"""The norms of a model."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional

from quantizer.native.decoder import RowNorm
from stage_server.families.spec import NormKind


@dataclass(frozen=True)
class Norm:
    """An RMS or layer norm over the last axis.

    Attributes:
        weight: Float32 (features,), or None for all ones.
        bias: Float32 (features,) of a layer norm that has weights, otherwise None.
    """

    kind: NormKind
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Norms (..., features), in float32 whatever the type of the result."""
        wide, features = hidden.float(), hidden.shape[-1:]
        if self.kind is NormKind.RMS:
            return functional.rms_norm(wide, features, self.weight, self.eps).to(hidden.dtype)
        return functional.layer_norm(wide, features, self.weight, self.bias, self.eps).to(hidden.dtype)

    @cached_property
    def of_rows(self) -> RowNorm:
        """It, as the native kernels take it."""
        return RowNorm(self.weight, self.bias, self.eps, self.kind is NormKind.LAYER)

    @property
    def memory_bytes(self) -> int:
        """Bytes of weight and bias."""
        return sum(part.nbytes for part in (self.weight, self.bias) if part is not None)


@dataclass(frozen=True)
class LayerNorms:
    """The norms of a layer.

    Attributes:
        attention: Of what attention reads; without pre-norm of the residual sum behind it.
        ffn: The same of the feed-forward network.
        attention_out: Of what attention adds to the residual stream; None in most families, as the following.
        ffn_out: Of what the feed-forward network adds to it.
        query: Of each query head.
        key: Of each key head.
    """

    attention: Norm
    ffn: Norm
    attention_out: Norm | None = None
    ffn_out: Norm | None = None
    query: Norm | None = None
    key: Norm | None = None
