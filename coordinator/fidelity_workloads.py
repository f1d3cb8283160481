"""Random work for a stage, none of which a profile contains."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from llmpq.model import ModelShape

#: Layers times tokens that a workload prefills at most, so that a slow device takes seconds for it.
_MAX_LAYER_TOKENS = 12_000
_MAX_SEQUENCES = 32
#: Prompts of the shortest workloads.
_MIN_PROMPT_TOKENS = 12
#: Share of the model's layers that a slice has: about what a stage has.
_SLICE_SHARES = (0.3, 0.7)


@dataclass(frozen=True)
class SliceWorkload:
    """A slice of a model and micro-batches for it.

    Attributes:
        first_layer: First layer of the slice.
        schemes: Scheme of each of its layers.
        prefill_sequences: eta.
        decode_sequences: xi, and all sequences there are.
        prompt_tokens: Of each sequence.
    """

    first_layer: int
    schemes: tuple[str, ...]
    prefill_sequences: int
    decode_sequences: int
    prompt_tokens: int

    @property
    def end_layer(self) -> int:
        """One past the last layer."""
        return self.first_layer + len(self.schemes)

    @property
    def prefill_tokens(self) -> int:
        """Rows of a prefill micro-batch."""
        return self.prefill_sequences * self.prompt_tokens


def draw_workload(source: random.Random, shape: ModelShape, schemes: Sequence[str], max_context: int) -> SliceWorkload:
    """A slice at the start, in the middle or at the end of the model, of one to three schemes; sizes log-uniform.

    Args:
        source: Of randomness.
        shape: The model.
        schemes: What the device can run.
        max_context: Longest prompt.
    """
    least, most = (max(round(share * shape.num_layers), 1) for share in _SLICE_SHARES)
    num_layers = source.randint(least, most)
    last_start = shape.num_layers - num_layers
    first_layer = source.choice((0, source.randint(0, last_start), last_start))
    chosen = source.sample(list(schemes), source.randint(1, min(3, len(schemes))))
    num_sequences = _log_uniform(source, 1, _MAX_SEQUENCES)
    most_tokens = min(max_context, _MAX_LAYER_TOKENS // (num_layers * num_sequences))
    prompt_tokens = _log_uniform(source, min(_MIN_PROMPT_TOKENS, max_context), most_tokens)
    return SliceWorkload(
        first_layer=first_layer,
        schemes=tuple(source.choice(chosen) for _ in range(num_layers)),
        prefill_sequences=_log_uniform(source, 1, num_sequences),
        decode_sequences=num_sequences,
        prompt_tokens=prompt_tokens,
    )


def _log_uniform(source: random.Random, least: int, most: int) -> int:
    """A whole number whose logarithm is evenly spread."""
    if most <= least:
        return least
    return min(int(least * ((most + 1) / least) ** source.random()), most)
