"""When an answer is complete, apart from its length."""

from collections.abc import Callable, Sequence

from coordinator.requests import Request
from coordinator.tokenizing import ModelTokenizer

Decode = Callable[[Sequence[int]], str]


class StopCondition:
    """Watches one answer grow: ends it at a stop token, or as soon as a stop string is in its text.

    Args:
        stop_ids: Tokens that end the answer.
        stop_strings: Texts that end it, wherever token boundaries fall.
        decode: Token ids to text.
    """

    def __init__(self, stop_ids: frozenset[int], stop_strings: Sequence[str], decode: Decode) -> None:
        self._stop_ids = stop_ids
        self._stop_strings = stop_strings
        self._decode = decode
        self._tail = ""
        self._tail_length = max(map(len, stop_strings), default=1) - 1
        self._context_at = 0
        self._decoded_to = 0

    def is_met(self, generated: Sequence[int]) -> bool:
        """Whether the answer is complete; to be asked after every token."""
        return generated[-1] in self._stop_ids or (bool(self._stop_strings) and self._has_stop_string(generated))

    def text(self, generated: Sequence[int]) -> str:
        """The answer's text: without the stop token, and up to the first stop string."""
        has_stop_token = bool(generated) and generated[-1] in self._stop_ids
        return cut_before(self._decode(generated[:-1] if has_stop_token else generated), self._stop_strings)

    def _has_stop_string(self, generated: Sequence[int]) -> bool:
        """Looks into the text since the last complete character, and into what a stop string may have begun in.

        A tokenizer joins tokens only with those before them at hand, so the last ones are decoded again as context.
        """
        context = self._decode(generated[self._context_at : self._decoded_to])
        text = self._tail + self._decode(generated[self._context_at :])[len(context) :]
        if not text.endswith("\ufffd"):  # otherwise the next tokens complete this character
            self._tail = text[-self._tail_length :] if self._tail_length else ""
            self._context_at, self._decoded_to = self._decoded_to, len(generated)
        return any(stop in text for stop in self._stop_strings)


def stop_condition(request: Request, tokenizer: ModelTokenizer, *, ignore_stop: bool) -> StopCondition:
    """The condition of a request; with `ignore_stop` nothing but its length ends it."""
    if ignore_stop:
        return StopCondition(frozenset(), (), tokenizer.decode)
    of_model = frozenset[int]() if request.ignores_eos else tokenizer.stop_ids
    return StopCondition(of_model | set(request.stop_ids), request.stop_strings, tokenizer.decode)


def cut_before(text: str, stop_strings: Sequence[str]) -> str:
    """`text` up to the earliest of the stop strings."""
    found = [at for at in (text.find(stop) for stop in stop_strings) if at >= 0]
    return text[: min(found)] if found else text
