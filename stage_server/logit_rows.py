"""How many rows of logits exist at a time: few enough for memory, enough for a head to be multiplied in few pieces."""

from collections.abc import Iterator

from stage_server.ends import Head

#: 64 MiB in float32.
_MAX_LOGITS = 2**24


def logit_rows(head: Head, num_rows: int) -> Iterator[slice]:
    """The rows in pieces."""
    size = max(1, _MAX_LOGITS // head.vocabulary.out_features)
    for first in range(0, num_rows, size):
        yield slice(first, first + size)
