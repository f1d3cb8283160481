"""What a length histogram comes to: the sums that time and memory depend on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from heapq import heapreplace

from llmpq.plan import LengthBucket


@dataclass(frozen=True)
class Load:
    """What one micro-batch asks of a stage; fractions arise where it stands for the mean of many.

    Attributes:
        num_sequences: Sequences.
        num_rows: New tokens of all sequences.
        num_pairs: Sum over the rows of the tokens that each attends to.
    """

    num_sequences: float
    num_rows: float
    num_pairs: float

    @classmethod
    def of(cls, num_sequences: float, num_tokens: float, past_tokens: float) -> "Load":
        """The load of equal sequences with `num_tokens` new ones after `past_tokens` in the cache."""
        num_rows = num_sequences * num_tokens
        return cls(num_sequences, num_rows, num_rows * (past_tokens + num_tokens))


@dataclass(frozen=True)
class Workload:
    """Sums over all requests. The first token of an answer comes from prefill, so n tokens take n - 1 decode steps.

    Attributes:
        num_requests: Requests.
        prompt_tokens: Tokens of all prompts.
        prompt_pairs: Sum of the squared prompt lengths.
        longest_prompt: Tokens of the longest prompt.
        max_sequence_tokens: Tokens of the longest prompt with its answer.
        output_tokens: Tokens of all answers.
        mean_cached_tokens: Mean over all decode steps of the tokens in the cache.
        steps: (decode steps of a request, number of such requests), longest first.
        prompts: (tokens of a prompt, number of such prompts).
    """

    num_requests: int
    prompt_tokens: int
    prompt_pairs: int
    longest_prompt: int
    max_sequence_tokens: int
    output_tokens: int
    mean_cached_tokens: float
    steps: tuple[tuple[int, int], ...]
    prompts: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, buckets: Sequence[LengthBucket]) -> "Workload":
        """Sums up a histogram."""
        steps: Counter[int] = Counter()
        for bucket in buckets:
            steps[max(bucket.output_tokens - 1, 0)] += bucket.count
        cached_tokens = sum(
            b.count * (b.output_tokens - 1) * (b.prompt_tokens + (b.output_tokens - 2) / 2)
            for b in buckets
            if b.output_tokens > 1
        )
        decode_steps = sum(length * count for length, count in steps.items())
        return cls(
            num_requests=sum(b.count for b in buckets),
            prompt_tokens=sum(b.count * b.prompt_tokens for b in buckets),
            prompt_pairs=sum(b.count * b.prompt_tokens**2 for b in buckets),
            longest_prompt=max(b.prompt_tokens for b in buckets),
            max_sequence_tokens=max(b.prompt_tokens + b.output_tokens for b in buckets),
            output_tokens=sum(b.count * b.output_tokens for b in buckets),
            mean_cached_tokens=cached_tokens / decode_steps if decode_steps else 0.0,
            steps=tuple(sorted(steps.items(), reverse=True)),
            prompts=tuple((b.prompt_tokens, b.count) for b in buckets),
        )

    @property
    def decode_steps(self) -> int:
        """Decode steps of all requests together."""
        return sum(length * count for length, count in self.steps)

    @property
    def mean_prompt_tokens(self) -> float:
        """Mean prompt length."""
        return self.prompt_tokens / self.num_requests

    def prefill_load(self, num_sequences: float) -> Load:
        """The load of `num_sequences` mean prompts."""
        share = num_sequences / self.num_requests
        return Load(num_sequences, self.prompt_tokens * share, self.prompt_pairs * share)

    def decode_load(self, num_sequences: float) -> Load:
        """The load of one decode step of `num_sequences` sequences at the mean cached length."""
        return Load.of(num_sequences, 1, self.mean_cached_tokens)

    def num_prefill_frames(self, num_sequences: int, max_tokens: int) -> int:
        """Frames that prompts take, of at most so many sequences and tokens each.

        There are as many as the sequences or the tokens need, whichever are more. A prompt that is longer than a frame
        is cut, and takes its last frame as well for itself: others start whole, and rarely fit beside it.
        """
        tokens = sum(
            count * (prompt if prompt <= max_tokens else -(-prompt // max_tokens) * max_tokens)
            for prompt, count in self.prompts
        )
        return max(-(-self.num_requests // num_sequences), -(-tokens // max_tokens))

    def num_rounds(self, num_slots: int) -> int:
        """Decode rounds until all requests are done, when a slot takes the next request as soon as it is free.

        Requests are dealt longest first, each to the slot that is free first. Of many equal ones, all but the last
        one or two per slot are dealt evenly at once. For equal lengths that is ceil(requests / slots) * steps.
        """
        return _num_rounds(self.steps, num_slots)


@cache
def _num_rounds(steps: tuple[tuple[int, int], ...], num_slots: int) -> int:
    busy = [0] * num_slots  # rounds dealt to each slot beyond those dealt to all; a heap
    dealt_to_all = 0
    for length, count in steps:
        waves = max(count // num_slots - 1, 0)
        dealt_to_all += waves * length
        for _ in range(count - waves * num_slots):
            heapreplace(busy, busy[0] + length)
    return dealt_to_all + max(busy)
