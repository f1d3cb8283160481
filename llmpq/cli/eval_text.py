"""Texts to be scored: read from files, and turned into tokens as the model has them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmpq.errors import InvalidInputError
from llmpq.model import ModelFiles

#: Text to token ids, without special tokens.
Encode = Callable[[str], list[int]]


def load_tokenizer(model: str) -> Any:
    """The model's tokenizer, of transformers.

    Raises:
        NotFoundError: No such model.
        InvalidInputError: It has no tokenizer.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 takes seconds, and no other command needs it
    from transformers.utils import logging  # noqa: PLC0415

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it warns that texts are longer than the context
    files = ModelFiles.locate(model)
    try:
        return AutoTokenizer.from_pretrained(**files.from_pretrained)
    except (OSError, ValueError, KeyError) as error:
        place = f"a vocabulary in {files.gguf}" if files.gguf else "tokenizer.json or tokenizer.model in the directory"
        raise InvalidInputError(f"No tokenizer of the model at '{model}': expected {place}.", subject=model) from error


def encoder(tokenizer: Any) -> Encode:
    """Encodes without special tokens: what is scored is the text and nothing else."""
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


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
