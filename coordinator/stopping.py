"""When an answer is complete, apart from its length."""

from collections.abc import Callable, Sequence

from coordinator.requests import Endpoint, Request
from coordinator.tokenizing import ModelTokenizer

Decode = Callable[[Sequence[int]], str]


class StopCondition:
    """Watches one answer grow: ends it at a stop token, or as soon as a stop string is in its text.

    Args:
        stop_ids: Tokens that end the answer.
        stop_strings: Texts that end it, wherever token boundaries fall.
        decode: Token ids to text.
        prompt: Tokens that the answer's text goes on from; none if it is a text of its own.
    """

    def __init__(
        self,
        stop_ids: frozenset[int],
        stop_strings: Sequence[str],
        decode: Decode,
        prompt: Sequence[int] = (),
    ) -> None:
        self._stop_ids = stop_ids
        self._stop_strings = stop_strings
        self._decode = decode
        self._prompt = prompt
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
        return cut_before(
            self._following(self._prompt, generated[: len(generated) - has_stop_token]), self._stop_strings
        )

    def _has_stop_string(self, generated: Sequence[int]) -> bool:
        """Looks into the text since the last complete character, and into what a stop string may have begun in.

        A tokenizer joins tokens only with those before them at hand, so the last ones are decoded again as context.
        """
        context = generated[self._context_at : self._decoded_to] if self._decoded_to else self._prompt
        text = self._tail + self._following(context, generated[self._decoded_to :])
        if not text.endswith("\ufffd"):  # otherwise the next tokens complete this character
            self._tail = text[-self._tail_length :] if self._tail_length else ""
            self._context_at, self._decoded_to = self._decoded_to, len(generated)
        return any(stop in text for stop in self._stop_strings)

    def _following(self, context: Sequence[int], tokens: Sequence[int]) -> str:
        """Text of tokens that come after others; on their own, many tokenizers would drop the space they begin with."""
        return self._decode([*context, *tokens])[len(self._decode(context)) :]


def stop_condition(request: Request, tokenizer: ModelTokenizer, *, ignore_stop: bool) -> StopCondition:
    """The condition of a request; with `ignore_stop` nothing but its length ends it.

    A completion goes on from its prompt, perhaps with a space. A chat's answer is a text of its own.
    """
    prompt = request.prompt if request.endpoint is Endpoint.COMPLETIONS else ()
    if ignore_stop:
        return StopCondition(frozenset(), (), tokenizer.decode, prompt)
    of_model = frozenset[int]() if request.ignores_eos else tokenizer.stop_ids
    return StopCondition(of_model | set(request.stop_ids), request.stop_strings, tokenizer.decode, prompt)


def cut_before(text: str, stop_strings: Sequence[str]) -> str:
    """`text` up to the earliest of the stop strings."""
    found = [at for at in (text.find(stop) for stop in stop_strings) if at >= 0]
    return text[: min(found)] if found else text
