"""Where the rows of a frame belong: which sequence, which position, which cache slot."""

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class BatchLayout:
    """The sequences of one micro-batch; its rows are their new tokens, one sequence after another.

    Attributes:
        slots: KV cache slot of each sequence.
        starts: Tokens of each sequence that are in the cache already.
        counts: New tokens of each sequence.
    """

    slots: tuple[int, ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    device: torch.device

    @property
    def num_sequences(self) -> int:
        """Sequences of the micro-batch."""
        return len(self.slots)

    @property
    def num_rows(self) -> int:
        """New tokens of all sequences."""
        return sum(self.counts)

    @property
    def is_one_token_each(self) -> bool:
        """Whether every sequence has one new token, as in decode."""
        return self.num_rows == self.num_sequences

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Tokens of each sequence once its new ones are in the cache."""
        return tuple(start + count for start, count in zip(self.starts, self.counts, strict=True))

    @cached_property
    def positions(self) -> torch.Tensor:
        """(rows,) int64: position of each row in its sequence."""
        if self.is_one_token_each:
            return torch.tensor(self.starts, device=self.device)
        return torch.cat([torch.arange(s, e, device=self.device) for s, e in zip(self.starts, self.ends, strict=True)])

    @cached_property
    def table(self) -> torch.Tensor:
        """(3, sequences) int64 on the host: slots, starts, counts."""
        return torch.tensor((self.slots, self.starts, self.counts))

    @cached_property
    def slot_index(self) -> torch.Tensor:
        """(sequences,) int64: the slots."""
        return torch.tensor(self.slots, device=self.device)

    @cached_property
    def contiguous_slots(self) -> slice | None:
        """The slots as a range, if they are one: a cache can then be viewed instead of gathered."""
        first = self.slots[0]
        if self.slots == tuple(range(first, first + len(self.slots))):
            return slice(first, first + len(self.slots))
        return None
