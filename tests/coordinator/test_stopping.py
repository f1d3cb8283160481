"""Where an answer ends, and what of it is text."""

from array import array

import pytest

from coordinator.requests import Endpoint, Request
from coordinator.stopping import StopCondition, stop_condition
from coordinator.tokenizing import ModelTokenizer

EOS = 2


@pytest.fixture(scope="module")
def tokenizer(opt_bytes: str) -> ModelTokenizer:
    """One token a byte."""
    return ModelTokenizer.load(opt_bytes)


def _stop(tokenizer: ModelTokenizer, *stop_strings: str) -> StopCondition:
    return StopCondition(frozenset({EOS}), stop_strings, tokenizer.decode)


def _grow(stop: StopCondition, tokens: list[int]) -> list[int]:
    """The tokens up to the one that ends the answer."""
    for end in range(1, len(tokens) + 1):
        if stop.is_met(tokens[:end]):
            return tokens[:end]
    return tokens


def test_a_stop_string_may_span_tokens(tokenizer: ModelTokenizer) -> None:
    """The answer ends with the token that completes a stop string, and its text before the string begins."""
    stop = _stop(tokenizer, "END", "zz")
    grown = _grow(stop, tokenizer.encode("it ENdED ENDs here"))

    assert tokenizer.decode(grown) == "it ENdED END"
    assert stop.text(grown) == "it ENdED "


def test_a_stop_string_may_span_characters_of_several_tokens(tokenizer: ModelTokenizer) -> None:
    """Characters that are spread over tokens are put together before they are compared."""
    stop = _stop(tokenizer, "é→")
    grown = _grow(stop, tokenizer.encode("caf é é→ x"))

    assert stop.text(grown) == "caf é "


def test_the_earliest_stop_string_counts(tokenizer: ModelTokenizer) -> None:
    """If two stop strings are complete at once, the text ends before the one that begins first."""
    stop = _stop(tokenizer, "bc", "abc")
    grown = _grow(stop, tokenizer.encode("xabcd"))

    assert stop.text(grown) == "x"


def test_a_stop_token_ends_the_answer_and_is_no_text(tokenizer: ModelTokenizer) -> None:
    """The end token is the last one, and not part of the text."""
    stop = _stop(tokenizer)
    grown = _grow(stop, [*tokenizer.encode("ok"), EOS, *tokenizer.encode("more")])

    assert grown[-1] == EOS
    assert stop.text(grown) == "ok"


def test_a_stop_token_that_is_text_is_left_out_too() -> None:
    """A stop id that a request asks for ends the answer like the model's own, even if it could be read."""
    stop = StopCondition(frozenset({7}), (), lambda tokens: "".join(map(str, tokens)))

    assert stop.is_met([5, 7])
    assert stop.text([5, 7]) == "5"


def test_nothing_stops_what_has_no_stop(tokenizer: ModelTokenizer) -> None:
    """Without stop ids and strings an answer is only ended by its length."""
    stop = StopCondition(frozenset(), (), tokenizer.decode)

    assert _grow(stop, [EOS] * 5) == [EOS] * 5


def test_broken_characters_do_not_hide_a_stop_string(tokenizer: ModelTokenizer) -> None:
    """Bytes that never become a character are waited for, but a stop string before or after them is found."""
    broken = tokenizer.encode("é")[:1] * 3
    stop = _stop(tokenizer, "END")
    grown = _grow(stop, [*broken, *tokenizer.encode("aEND"), *broken, *tokenizer.encode("b")])

    assert stop.text(grown).endswith("a")


def test_a_completion_goes_on_from_its_prompt(stories260k: str) -> None:
    """The space before the first word of an answer is part of it, and of what stop strings are looked for in."""
    tokenizer = ModelTokenizer.load(stories260k)
    prompt = array("i", tokenizer.encode("Once"))
    generated = tokenizer.encode("Once upon a time")[len(prompt) :]
    request = Request(1, "a", Endpoint.COMPLETIONS, prompt, 9, stop_strings=(" upon",))
    free, stopped = (
        stop_condition(request, tokenizer, ignore_stop=True),
        stop_condition(request, tokenizer, ignore_stop=False),
    )

    assert free.text(generated) == " upon a time"
    assert stopped.text(_grow(stopped, generated)) == ""
    assert len(_grow(stop_condition(request, tokenizer, ignore_stop=False), generated)) < len(generated)


def test_a_chat_answer_is_a_text_of_its_own(stories260k: str) -> None:
    """What the model says in a chat does not begin with the space that separates words."""
    tokenizer = ModelTokenizer.load(stories260k)
    prompt = array("i", tokenizer.encode("Once\n"))
    request = Request(1, "a", Endpoint.CHAT_COMPLETIONS, prompt, 9)
    generated = tokenizer.encode("upon a time")[1:]

    assert stop_condition(request, tokenizer, ignore_stop=False).text(generated) == "upon a time"
