"""The text on which the sensitivity of layers is measured."""

import hashlib
import json
from importlib.resources import files

from coordinator.tokenizing import ModelTokenizer

#: Tokens of each sample at most.
MAX_SAMPLE_TOKENS = 256


def calibration_samples(model: str) -> list[list[int]]:
    """Token ids of the calibration documents, cut to `MAX_SAMPLE_TOKENS`; slow, so off the event loop."""
    tokenizer = ModelTokenizer.load(model)
    max_tokens = min(MAX_SAMPLE_TOKENS, tokenizer.max_positions)
    return [tokenizer.encode(text)[:max_tokens] for text in _texts()]


def calibration_digest() -> str:
    """What the samples depend on besides the tokenizer, in short: whatever is measured on others has another one."""
    return hashlib.sha256(f"{MAX_SAMPLE_TOKENS} {_file()}".encode()).hexdigest()


def _texts() -> list[str]:
    """The documents; the file's first line says where they come from."""
    return [json.loads(line)["text"] for line in _file().splitlines()[1:]]


def _file() -> str:
    return files("coordinator").joinpath("calibration.jsonl").read_text(encoding="utf-8")
