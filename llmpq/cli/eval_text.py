"""Texts to be scored: read from files, and turned into tokens as the model has them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmpq.errors import InvalidInputError

#: Text to token ids, without special tokens.
Encode = Callable[[str], list[int]]

#: Of ordinary text, at least for now; more are taken where there are more.
_CHARACTERS_PER_TOKEN = 8
#: More than a word has.
_UNSURE_TOKENS = 64


def encoder(tokenizer: Any) -> Encode:
    """Encodes without special tokens: what is scored is the text and nothing else."""
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def first_tokens(encode: Encode, text: str, count: int) -> list[int]:
    """The first tokens of a text, of which no more is encoded than that takes.

    A word or two at the end of what is encoded may become other tokens than in the whole text; so some more are asked
    for than are kept.
    """
    size = count * _CHARACTERS_PER_TOKEN
    while size < len(text):
        token_ids = encode(text[:size].rpartition(" ")[0])
        if len(token_ids) >= count + _UNSURE_TOKENS:
            return token_ids[:count]
        size *= 2
    return encode(text)[:count]


def read_text(path: Path) -> str:
    """The text of a file; of a .jsonl file the `text` of each line, joined by blank lines.

    Raises:
        InvalidInputError: Not UTF-8, or a line without a text; names it.
    """
    if path.suffix != ".jsonl":
        return _content(path)
    return "\n\n".join(_document(path, number, fields) for number, fields in read_objects(path))


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a .jsonl file with their line numbers, from 1; blank lines are left out.

    Raises:
        InvalidInputError: Not UTF-8, or a line that is no JSON object; names it.
    """
    for number, line in enumerate(_content(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(f"{path}, line {number}: not JSON: {error}.", subject=str(path)) from error
        if not isinstance(fields, dict):
            raise InvalidInputError(f"{path}, line {number}: not a JSON object.", subject=str(path))
        yield number, fields


def _document(path: Path, number: int, fields: dict[str, Any]) -> str:
    text = fields.get("text")
    if not isinstance(text, str):
        raise InvalidInputError(f"{path}, line {number}: has no field `text`.", subject=str(path))
    return text


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}: not UTF-8, at byte {error.start:,}.", subject=str(path)) from error
