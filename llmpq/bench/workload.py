"""The work that systems are compared on: the same prompts and lengths for all."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

#: Clipping of the mixture, as vLLM's own benchmark does: tokens of a prompt, and of prompt and answer together.
MAX_PROMPT, MAX_LENGTH = 1024, 2048
_STRIDE = 389


@dataclass(frozen=True)
class Workload:
    """Requests to be answered greedily.

    Attributes:
        name: What to call it: `32 x 128 -> 64`.
        prompts: Token ids of each prompt.
        max_tokens: Tokens of each answer at most; exactly so many if there are no stops.
        stops: Token ids that end an answer; it holds them still.
    """

    name: str
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: tuple[int, ...]
    stops: tuple[int, ...] = ()

    @property
    def max_length(self) -> int:
        """Tokens of the longest request, prompt and answer."""
        return max(len(prompt) + limit for prompt, limit in zip(self.prompts, self.max_tokens, strict=True))

    @property
    def num_tokens(self) -> int:
        """Most tokens of all requests, prompts and answers."""
        return sum(map(len, self.prompts)) + sum(self.max_tokens)

    def shortened(self, max_tokens: int) -> "Workload":
        """The same prompts with short answers."""
        return replace(self, max_tokens=tuple(min(limit, max_tokens) for limit in self.max_tokens))


def equal_lengths(text: Sequence[int], num_requests: int, prompt_tokens: int, new_tokens: int) -> Workload:
    """Prompts of one length, and answers of one length whatever the model says; see `_prompt`."""
    prompts = tuple(_prompt(text, number, prompt_tokens) for number in range(num_requests))
    return Workload(f"{num_requests} x {prompt_tokens} -> {new_tokens}", prompts, (new_tokens,) * num_requests)


def sharegpt_lengths(text: Sequence[int], num_requests: int, stops: Sequence[int], max_positions: int) -> Workload:
    """Lengths of real conversations' first turns; answers end where the model stops, and at the latest at their length.

    Lengths are clipped to `MAX_PROMPT`, and to `MAX_LENGTH` or the model's context together.
    """
    max_length = min(MAX_LENGTH, max_positions)
    prompts, max_tokens = [], []
    for number, (prompt_tokens, new_tokens) in enumerate(_conversations(num_requests)):
        length = min(prompt_tokens, MAX_PROMPT, max_length - 1)
        prompts.append(_prompt(text, number, length))
        max_tokens.append(min(new_tokens, max_length - length))
    return Workload(f"{num_requests} of ShareGPT", tuple(prompts), tuple(max_tokens), tuple(stops))


def _conversations(num_requests: int) -> list[tuple[int, int]]:
    """(prompt, answer) lengths, evenly spaced over the file and repeated if it holds too few."""
    with files("llmpq.bench").joinpath("data/sharegpt_lengths.csv").open(encoding="utf-8") as file:
        lengths = [(int(prompt), int(answer)) for prompt, answer in list(csv.reader(file))[1:]]
    step = max(len(lengths) / num_requests, 1)
    return [lengths[int(number * step) % len(lengths)] for number in range(num_requests)]


def _prompt(text: Sequence[int], number: int, length: int) -> tuple[int, ...]:
    """A prompt cut from a text that is thought of as a ring, another one for each number: none is another's prefix."""
    begin = number * _STRIDE % len(text)
    return tuple(text[(begin + at) % len(text)] for at in range(length))
