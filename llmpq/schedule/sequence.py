"""One request on its way through the pipeline."""

from array import array
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from enum import StrEnum

from llmpq.frames import Sampling


class FinishReason(StrEnum):
    """Why no further token is generated, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(eq=False)
class Sequence:
    """A request's tokens, and how many of them are in the KV cache.

    Attributes:
        line_number: Names the request within its batch.
        prompt: Token ids; at least one.
        max_tokens: Tokens to generate at most; 0 scores the prompt instead.
        sampling: How to draw.
        is_complete: Whether the tokens generated so far, never none, end the answer.
        generated: Tokens generated so far, those of earlier runs included.
        scores: Log-probabilities of the prompt's tokens after the first, as far as known.
        num_sent: Tokens that are in the cache, or on their way there.
        finish_reason: Why it ended; None while it runs.
    """

    line_number: int
    prompt: "array[int]"
    max_tokens: int
    sampling: Sampling
    is_complete: Callable[[Tokens[int]], bool]
    generated: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    num_sent: int = 0
    finish_reason: FinishReason | None = None

    @property
    def is_scoring(self) -> bool:
        """Whether its prompt is scored rather than continued."""
        return self.max_tokens == 0

    @property
    def num_left(self) -> int:
        """Tokens that it may yet generate."""
        return self.max_tokens - len(self.generated)

    @property
    def num_unsent(self) -> int:
        """Tokens that must yet be sent. Nobody asks what follows a scored prompt, so its last token stays here."""
        num_rows = max(len(self.prompt) - 1, 1) if self.is_scoring else len(self.prompt) + len(self.generated)
        return num_rows - self.num_sent

    def tokens(self, start: int, count: int) -> list[int]:
        """`count` tokens from position `start` on."""
        num_prompt = len(self.prompt)
        generated = self.generated[max(start - num_prompt, 0) : max(start + count - num_prompt, 0)]
        return [*self.prompt[start : start + count], *generated]

    def append(self, token: int) -> None:
        """Takes one more token of the answer, and decides whether it is the last."""
        self.generated.append(token)
        if self.is_complete(self.generated):
            self.finish_reason = FinishReason.STOP
        elif len(self.generated) >= self.max_tokens:
            self.finish_reason = FinishReason.LENGTH

    def replay(self, generated: Tokens[int]) -> None:
        """Takes the tokens of an earlier run, as far as they belong to the answer."""
        for token in generated:
            if self.finish_reason is None:
                self.append(token)

    def add_scores(self, scores: Tokens[float]) -> None:
        """Takes the scores of the next tokens of the prompt."""
        self.scores.extend(scores)
        if len(self.scores) == len(self.prompt) - 1:
            self.finish_reason = FinishReason.LENGTH
