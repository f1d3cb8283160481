"""A model's tokenizer, of transformers, for whoever needs text as the model has it."""

from typing import Any

from llmpq.errors import InvalidInputError, NotFoundError
from llmpq.made_once import IMPORTING
from llmpq.model import ModelFiles

#: What transformers can make a tokenizer of.
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def load_tokenizer(model: str) -> Any:
    """Loads the tokenizer of a model directory or GGUF file, which takes seconds.

    Raises:
        NotFoundError: No such model, or it has no tokenizer.
        InvalidInputError: Its tokenizer is damaged, or of a kind that transformers does not know.
    """
    files = ModelFiles.locate(model)
    if not files.gguf and not any((files.directory / name).is_file() for name in _FILES):
        message = (
            f"The model at '{model}' has no tokenizer: expected one of {', '.join(_FILES)} beside its config.json."
        )
        raise NotFoundError(message, reason="TOKENIZER_NOT_FOUND", subject=model)
    with IMPORTING:
        from transformers import AutoTokenizer  # noqa: PLC0415 takes seconds, and most processes never need it
        from transformers.utils import logging  # noqa: PLC0415 as above

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it warns of texts longer than the context
        return _loaded(model, files, AutoTokenizer)


def _loaded(model: str, files: ModelFiles, tokenizers: Any) -> Any:
    try:
        return tokenizers.from_pretrained(**files.from_pretrained)
    except Exception as error:  # a damaged file makes the parsers below raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        message = f"The tokenizer of the model at '{model}' cannot be read: {why}. Replace its tokenizer files."
        raise InvalidInputError(message, reason="BAD_TOKENIZER", subject="model") from error
