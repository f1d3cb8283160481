"""The text that the mesh calibrates on: to round weights by what they meet and, with a part of it, to rate layers."""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.resources import files

#: Tokens of each sample at most.
MAX_SAMPLE_TOKENS = 256
#: Samples that layers are rated on. Ratings order layers, which few samples do as well as many.
NUM_RATING_SAMPLES = 16


def samples_of(encode: Callable[[str], Sequence[int]], max_positions: int) -> list[list[int]]:
    """Token ids of the calibration documents, cut to `MAX_SAMPLE_TOKENS` and to the model's context.

    Args:
        encode: The model's tokenizer, which adds the special tokens that it adds to a prompt.
        max_positions: The model's context.
    """
    max_tokens = min(MAX_SAMPLE_TOKENS, max_positions)
    return [list(encode(text)[:max_tokens]) for text in _texts()]


def rating_text_digest() -> str:
    """What ratings depend on besides the tokenizer, in short: those made on other text have another one."""
    text = json.dumps(_texts()[:NUM_RATING_SAMPLES])
    return hashlib.sha256(f"{MAX_SAMPLE_TOKENS} {text}".encode()).hexdigest()


def _texts() -> list[str]:
    """The documents; the file's first line says where they come from."""
    lines = files("llmpq").joinpath("calibration.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[1:]]
