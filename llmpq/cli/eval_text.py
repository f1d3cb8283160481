"""Texts to be scored: read from files, and turned into tokens as the model has them."""

import json
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from io import IncrementalNewlineDecoder
from pathlib import Path
from typing import Any

from llmpq.errors import InvalidInputError

#: Text to token ids, without special tokens.
Encode = Callable[[str], list[int]]

#: Of ordinary text, at least for now; more are taken where there are more.
_CHARACTERS_PER_TOKEN = 8
#: More than a word has.
_UNSURE_TOKENS = 64
#: Of a file at a time: little beside a model, and some thousands of words.
_BLOCK_BYTES = 2**16


def encoder(tokenizer: Any) -> Encode:
    """Encodes without special tokens: what is scored is the text and nothing else."""
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def shipped_text() -> str:
    """The head of WikiText-2, which comes with the package."""
    return files("llmpq.bench").joinpath("data/wikitext_head.txt").read_text(encoding="utf-8")


def first_tokens(encode: Encode, pieces: Iterable[str], count: int) -> list[int]:
    """The first tokens of a text that comes in pieces, of which no more is taken and encoded than that needs.

    A word or two at the end of what is encoded may become other tokens than in the whole text; so some more are asked
    for than are kept.
    """
    text, size = "", count * _CHARACTERS_PER_TOKEN
    for piece in pieces:
        text += piece
        while size < len(text):
            token_ids = encode(text[:size].rpartition(" ")[0])
            if len(token_ids) >= count + _UNSURE_TOKENS:
                return token_ids[:count]
            size *= 2
    return encode(text)[:count]


def read_text(path: Path) -> str:
    """The whole text of a file; see `text_pieces`."""
    return "".join(text_pieces(path))


def text_pieces(path: Path) -> Iterator[str]:
    """The text of a file as it is read; of a .jsonl file the `text` of each line, joined by blank lines.

    Raises:
        InvalidInputError: Not UTF-8, or a line without a text; names it.
    """
    if path.suffix != ".jsonl":
        yield from _decoded(path)
        return
    separator = ""
    for number, fields in read_objects(path):
        yield separator + _document(path, number, fields)
        separator = "\n\n"


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a .jsonl file with their line numbers, from 1; blank lines are left out.

    Raises:
        InvalidInputError: Not UTF-8, or a line that is no JSON object; names it.
    """
    for number, line in enumerate(_lines(path), start=1):
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


def _lines(path: Path) -> Iterator[str]:
    rest = ""
    for piece in _decoded(path):
        *lines, rest = (rest + piece).split("\n")
        yield from lines
    yield rest


def _decoded(path: Path) -> Iterator[str]:
    """The characters of a file, whose lines end as they may, a block at a time."""
    decoder = IncrementalNewlineDecoder(getincrementaldecoder("utf-8-sig")(), translate=True)
    num_bytes = 0
    with path.open("rb") as file:
        is_last = False
        while not is_last:
            block = file.read(_BLOCK_BYTES)
            num_bytes += len(block)
            is_last = not block
            try:
                text = decoder.decode(block, final=is_last)
            except UnicodeDecodeError as error:
                at = num_bytes - len(error.object) + error.start
                raise InvalidInputError(f"{path}: not UTF-8, at byte {at:,}.", subject=str(path)) from error
            yield text
