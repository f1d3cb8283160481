"""Which micro-batches are profiled: all that `planner_svc.latency` fits, and not much more."""

from dataclasses import dataclass

#: (sequences, new tokens of each, tokens of each in the cache before).
Size = tuple[int, int, int]

#: Kernels change their path behind powers of two, so rows lie there, one further, and between; contexts are short, to
#: tell rows alone.
_DECODE_SEQUENCES = (1, 2, 3, 4, 5, 8, 9, 12, 16, 17, 24, 32)
_DECODE_PAST = 48
_PREFILL = (
    *((1, tokens) for tokens in (4, 8, 9, 16, 17, 24, 32, 33, 48, 64, 65, 96, 128, 129, 192)),
    *((sequences, 128) for sequences in (2, 3, 4, 6, 8, 12)),
)
#: What attention costs does not depend on the scheme: these are measured at one of them.
_CONTEXTS: tuple[Size, ...] = (
    *((4, tokens, 0) for tokens in (4, 16, 32)),
    (16, 4, 0),
    *((1, tokens, 0) for tokens in (256, 512, 1024, 1536)),
    *((sequences, 1, past) for sequences in (1, 4, 8, 16) for past in (256, 768)),
    (1, 1, 1536),
    (32, 1, 256),
)
#: Rows of a frame and of the embedding; sequences that the head draws a token for.
FRAME_ROWS = (1, 8, 32, 128, 512, 1536)
HEAD_SEQUENCES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class LayerGrid:
    """The micro-batches of one layer that a model and a device admit.

    Attributes:
        sizes: To be measured at every scheme.
        contexts: To be measured at one scheme besides.
    """

    sizes: tuple[Size, ...]
    contexts: tuple[Size, ...]

    @classmethod
    def of(cls, max_positions: int, bytes_per_token: int, max_cache_bytes: int) -> "LayerGrid":
        """The grid for contexts up to `max_positions`, as far as the cache of one layer is not too large."""

        def is_possible(size: Size) -> bool:
            sequences, tokens, past = size
            length = past + tokens
            return length < max_positions and sequences * length * bytes_per_token <= max_cache_bytes

        prefill = ((sequences, tokens, 0) for sequences, tokens in _PREFILL)
        decode = ((sequences, 1, min(_DECODE_PAST, max_positions - 2)) for sequences in _DECODE_SEQUENCES)
        sizes = tuple(filter(is_possible, (*prefill, *decode)))
        return cls(sizes, tuple(filter(is_possible, _CONTEXTS)))
