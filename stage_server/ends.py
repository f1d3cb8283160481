"""The two ends of the model: the embedding on the first stage, the head with sampling on the last."""

from dataclasses import dataclass

import torch

from quantizer.linear import QuantizedLinear
from stage_server.decoder_layer import Norm
from stage_server.layout import BatchLayout

#: Rows whose logits exist at a time: a vocabulary row is large, and prompts to be scored have many rows.
LOGIT_ROWS = 16


@dataclass(frozen=True)
class Embedding:
    """Token embedding, with learned positions added where the family has them.

    Attributes:
        tokens: (vocabulary, hidden), 16 bits.
        positions: (positions, hidden), 16 bits, or None.
        position_offset: Row that belongs to position 0.
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None
    position_offset: int
    compute_dtype: torch.dtype

    @property
    def memory_bytes(self) -> int:
        """Bytes of both tables."""
        return self.tokens.nbytes + (self.positions.nbytes if self.positions is not None else 0)

    def forward(self, token_ids: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        """Hidden states (rows, hidden) of (rows,) int token ids."""
        hidden = self.tokens[token_ids.long()].to(self.compute_dtype)
        if self.positions is not None:
            hidden = hidden + self.positions[layout.positions + self.position_offset].to(self.compute_dtype)
        return hidden


@dataclass(frozen=True)
class Head:
    """Final norm and projection to the vocabulary.

    Attributes:
        is_shared: The projection is this stage's embedding, in the same memory.
    """

    norm: Norm | None
    projection: QuantizedLinear
    is_shared: bool

    @property
    def memory_bytes(self) -> int:
        """Bytes of norm and projection, as far as they are the head's own."""
        projection = 0 if self.is_shared else self.projection.memory_bytes
        return projection + (self.norm.memory_bytes if self.norm is not None else 0)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) float32 of (rows, hidden)."""
        return self.projection.forward(self.norm(hidden) if self.norm is not None else hidden).float()

    def scores(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Log-probability (rows,) float32 of each row's (rows,) int64 target token."""
        scores = torch.empty(len(targets), device=hidden.device)
        for first in range(0, len(targets), LOGIT_ROWS):
            rows = slice(first, first + LOGIT_ROWS)
            log_probabilities = torch.log_softmax(self.logits(hidden[rows]), dim=-1)
            scores[rows] = log_probabilities.gather(1, targets[rows, None])[:, 0]
        return scores
