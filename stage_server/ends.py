"""The two ends of the model: the embedding on the first stage, the head with sampling on the last."""

from dataclasses import dataclass

import torch

from quantizer.linear import QuantizedLinear
from stage_server.layout import BatchLayout
from stage_server.norms import Norm
from stage_server.vocabulary_screen import VocabularyScreen

#: Rows whose logits exist at a time: a vocabulary row is large, and prompts to be scored have many rows.
LOGIT_ROWS = 16


@dataclass(frozen=True)
class Embedding:
    """Token embedding: scaled, projected, with learned positions added, and normed, where the family does so.

    Attributes:
        tokens: (vocabulary, embedding), 16 bits; embedding is hidden unless it is projected.
        positions: (positions, hidden), 16 bits, or None.
        position_offset: Row that belongs to position 0.
        scale: Factor on embedded tokens, rounded to the type computed in as in transformers.
        projection: To the width of the residual stream.
    """

    tokens: torch.Tensor
    compute_dtype: torch.dtype
    positions: torch.Tensor | None = None
    position_offset: int = 0
    scale: float = 1.0
    projection: QuantizedLinear | None = None
    norm: Norm | None = None

    @property
    def memory_bytes(self) -> int:
        """Bytes of both tables, projection and norm."""
        tables = self.tokens.nbytes + (self.positions.nbytes if self.positions is not None else 0)
        return tables + _bytes_of(self.projection, self.norm)

    def forward(self, token_ids: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        """Hidden states (rows, hidden) of (rows,) int token ids."""
        hidden = self.tokens[token_ids.long()].to(self.compute_dtype)
        if self.scale != 1:
            hidden = hidden * torch.tensor(self.scale, dtype=self.compute_dtype)
        if self.projection is not None:
            hidden = self.projection.forward(hidden)
        if self.positions is not None:
            hidden = hidden + self.positions[layout.positions + self.position_offset].to(self.compute_dtype)
        return hidden if self.norm is None else self.norm(hidden)


@dataclass(frozen=True)
class Head:
    """From the last hidden states to logits.

    Attributes:
        vocabulary: (vocabulary, embedding).
        is_shared: `vocabulary` is this stage's embedding, in the same memory.
        norm: Of what it reads.
        projection: From the width of the residual stream to that of the embedding, behind the norm.
        soft_cap: c of `c tanh(logit / c)`.
        screen: Finds the most likely tokens of `vocabulary` sooner.
    """

    vocabulary: QuantizedLinear
    is_shared: bool
    norm: Norm | None = None
    projection: QuantizedLinear | None = None
    soft_cap: float | None = None
    screen: VocabularyScreen | None = None

    @property
    def memory_bytes(self) -> int:
        """Bytes of the parts, as far as they are the head's own."""
        vocabulary = 0 if self.is_shared else self.vocabulary.memory_bytes
        return vocabulary + _bytes_of(self.projection, self.norm, self.screen)

    def most_likely(self, hidden: torch.Tensor) -> torch.Tensor:
        """The token of the largest logit of each row, the lowest id among equals: (rows,) int64 of (rows, hidden).

        A cap changes no order, but may make logits equal: it is left out.
        """
        read = self._read(hidden)
        return self.vocabulary.forward(read).argmax(dim=-1) if self.screen is None else self.screen.most_likely(read)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) float32 of (rows, hidden)."""
        logits = self.vocabulary.forward(self._read(hidden)).float()
        return logits if self.soft_cap is None else logits.div_(self.soft_cap).tanh_() * self.soft_cap

    def scores(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Log-probability (rows,) float32 of each row's (rows,) int64 target token."""
        scores = torch.empty(len(targets), device=hidden.device)
        for first in range(0, len(targets), LOGIT_ROWS):
            rows = slice(first, first + LOGIT_ROWS)
            log_probabilities = torch.log_softmax(self.logits(hidden[rows]), dim=-1)
            scores[rows] = log_probabilities.gather(1, targets[rows, None])[:, 0]
        return scores

    def _read(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the vocabulary is multiplied with."""
        normed = hidden if self.norm is None else self.norm(hidden)
        return normed if self.projection is None else self.projection.forward(normed)


def _bytes_of(*parts: QuantizedLinear | Norm | VocabularyScreen | None) -> int:
    return sum(part.memory_bytes for part in parts if part is not None)
