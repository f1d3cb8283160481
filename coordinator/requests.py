"""What a request is once its line has been checked and its prompt is token ids."""

from array import array
from dataclasses import dataclass, field
from enum import StrEnum

from llmpq.frames import Sampling


class Endpoint(StrEnum):
    """The OpenAI endpoints that a line may name."""

    CHAT_COMPLETIONS = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class Request:
    """One line of a batch, ready to run.

    Attributes:
        line_number: Line of the input, from 1; names the request within its batch.
        custom_id: The client's name for it.
        endpoint: Decides the form of the answer.
        prompt: Token ids, int32; at least one.
        max_tokens: Tokens to generate at most; 0 asks for the log-probabilities of the prompt instead.
        sampling: How to draw; the seed is always set, so that a resumed request draws the same tokens.
        stop_strings: The text ends before the first of these.
        stop_ids: Token ids that end it, beside those of the model.
        ignores_eos: Whether the model's own end tokens are ordinary ones.
    """

    line_number: int
    custom_id: str
    endpoint: Endpoint
    prompt: "array[int]"
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_strings: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignores_eos: bool = False

    @property
    def is_scoring(self) -> bool:
        """Whether the prompt is to be scored rather than continued."""
        return self.max_tokens == 0


@dataclass(frozen=True)
class Answer:
    """The answer to one line: a line of OpenAI's batch output format."""

    line_number: int
    custom_id: str
    is_error: bool
    json: str
