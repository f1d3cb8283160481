"""From the lines of a batch to requests and line errors; pure, and slow enough to want a thread."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.openai_answers import error_answer
from coordinator.openai_requests import LineError, ParsedLine, custom_id_of, parse_line
from coordinator.requests import Answer, Request
from coordinator.tokenizing import ModelTokenizer
from llmpq.batch import BatchOptions


@dataclass
class ValidatedLines:
    """What became of a batch's lines."""

    requests: list[Request] = field(default_factory=list)
    errors: list[Answer] = field(default_factory=list)


def validate(
    lines: Iterable[tuple[int, str]],
    model: str,
    tokenizer: ModelTokenizer,
    options: BatchOptions,
) -> ValidatedLines:
    """Checks and tokenizes (line number, text) pairs; a bad line becomes an error and harms no other.

    Args:
        lines: The lines.
        model: The name by which the batch was given its model. Unless the options name it, no line may name another.
        tokenizer: Of that model.
        options: Of the batch.
    """
    validated = ValidatedLines()
    line_of_custom_id: dict[str, int] = {}
    for line_number, text in lines:
        custom_id = custom_id_of(text)
        try:
            _refuse_duplicate(line_of_custom_id, custom_id, line_number)
            line = parse_line(text)
            if not options.model:
                _refuse_other_model(line, model)
            validated.requests.append(tokenizer.request(line, line_number, options.default_max_tokens))
        except LineError as error:
            validated.errors.append(error_answer(line_number, custom_id, error))
        except Exception as error:  # noqa: BLE001 a tokenizer that one line upsets must not fail the others
            message = f"The model's tokenizer cannot read the line: {type(error).__name__}."
            validated.errors.append(error_answer(line_number, custom_id, LineError("invalid_value", message)))
    return validated


def _refuse_duplicate(line_of_custom_id: dict[str, int], custom_id: str, line_number: int) -> None:
    first = line_of_custom_id.setdefault(custom_id, line_number)
    if custom_id and first != line_number:
        message = f"custom_id '{custom_id}' of line {line_number} is that of line {first} already."
        raise LineError("duplicate_custom_id", message, "custom_id")


def _refuse_other_model(line: ParsedLine, model: str) -> None:
    if line.model and line.model != model:
        message = f"body.model: a batch runs one model, and this one runs '{model}'. Submit the line in another batch."
        raise LineError("model_mismatch", message, "body.model")
