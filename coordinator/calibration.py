"""The samples that stages calibrate on, in tokens of their model."""

from coordinator.tokenizing import ModelTokenizer
from llmpq.calibration_text import samples_of


def calibration_samples(model: str) -> list[list[int]]:
    """Token ids of the calibration text; slow, so off the event loop. Raises as `ModelTokenizer.load`."""
    tokenizer = ModelTokenizer.load(model)
    return samples_of(tokenizer.encode, tokenizer.max_positions)
