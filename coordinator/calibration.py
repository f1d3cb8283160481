"""The text on which the sensitivity of layers is measured."""

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


def _texts() -> list[str]:
    """The documents; the file's first line says where they come from."""
    lines = files("coordinator").joinpath("calibration.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[1:]]
