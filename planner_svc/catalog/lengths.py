"""Distributions of request lengths."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, ClassVar

from annotated_types import Len
from pydantic import ConfigDict, PositiveInt

from llmpq.errors import InvalidInputError
from llmpq.plan import LengthBucket


@dataclass(frozen=True)
class LengthsSheet:
    """A distribution as `lengths.yaml` describes it.

    Attributes:
        requests: (prompt tokens, output tokens, number of requests) of each cell of a histogram.
        source: Where it comes from.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    requests: Annotated[Sequence[tuple[PositiveInt, PositiveInt, PositiveInt]], Len(min_length=1)]
    source: str

    def sample(self, num_requests: int, max_tokens: int) -> tuple[LengthBucket, ...]:
        """So many requests at equal steps through the cells, by prompt and then output; always the same ones.

        Requests of more than `max_tokens` with their answers are left out, as the model could not run them.

        Raises:
            InvalidInputError: Nothing is left.
        """
        cells = sorted(cell for cell in self.requests if cell[0] + cell[1] <= max_tokens)
        if not cells:
            message = f"All requests of the distribution are longer than the model's {max_tokens} tokens."
            raise InvalidInputError(message, subject="lengths")
        ends = list(accumulate(count for _, _, count in cells))
        drawn: Counter[tuple[int, int]] = Counter()
        cell = 0
        for number in range(num_requests):
            while ends[cell] * num_requests <= (number + 0.5) * ends[-1]:
                cell += 1
            drawn[cells[cell][:2]] += 1
        return tuple(LengthBucket(*lengths, count) for lengths, count in drawn.items())
