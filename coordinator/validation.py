"""From the lines of a batch to requests and line errors; pure, and slow enough to want a thread."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.openai_answers import error_answer
from coordinator.openai_requests import LineError, custom_id_of, parse_line
from coordinator.requests import Answer, Request
from coordinator.tokenizing import ModelTokenizer
from llmpq.batch import BatchOptions


@dataclass
class ValidatedLines:
    """What became of a batch's lines."""

    requests: list[Request] = field(default_factory=list)
    errors: list[Answer] = field(default_factory=list)


def validate(lines: Iterable[tuple[int, str]], tokenizer: ModelTokenizer, options: BatchOptions) -> ValidatedLines:
    """Checks and tokenizes (line number, text) pairs; a bad line becomes an error result and harms no other."""
    validated = ValidatedLines()
    line_of_custom_id: dict[str, int] = {}
    for line_number, text in lines:
        custom_id = custom_id_of(text)
        try:
            _refuse_duplicate(line_of_custom_id, custom_id, line_number)
            request = tokenizer.request(parse_line(text), line_number, options.default_max_tokens)
            validated.requests.append(request)
        except LineError as error:
            validated.errors.append(error_answer(line_number, custom_id, error))
    return validated


def _refuse_duplicate(line_of_custom_id: dict[str, int], custom_id: str, line_number: int) -> None:
    first = line_of_custom_id.setdefault(custom_id, line_number)
    if custom_id and first != line_number:
        message = f"custom_id '{custom_id}' of line {line_number} is that of line {first} already."
        raise LineError("duplicate_custom_id", message, "custom_id")
