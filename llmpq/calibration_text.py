"""The text that the mesh calibrates on: to rate layers, and to round their weights by what they meet."""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.resources import files

#: Tokens of each sample at most.
MAX_SAMPLE_TOKENS = 256


def samples_of(encode: Callable[[str], Sequence[int]], max_positions: int) -> list[list[int]]:
    """Token ids of the calibration documents, cut to `MAX_SAMPLE_TOKENS` and to the model's context.

    Args:
        encode: The model's tokenizer, which adds the special tokens that it adds to a prompt.
        max_positions: The model's context.
    """
    max_tokens = min(MAX_SAMPLE_TOKENS, max_positions)
    return [list(encode(text)[:max_tokens]) for text in _texts()]


def calibration_digest() -> str:
    """What the samples depend on besides the tokenizer, in short: whatever is measured on others has another one."""
    return hashlib.sha256(f"{MAX_SAMPLE_TOKENS} {_file()}".encode()).hexdigest()


def _texts() -> list[str]:
    """The documents; the file's first line says where they come from."""
    return [json.loads(line)["text"] for line in _file().splitlines()[1:]]


def _file() -> str:
    return files("llmpq").joinpath("calibration.jsonl").read_text(encoding="utf-8")
