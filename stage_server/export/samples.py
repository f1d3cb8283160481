"""The calibration samples of an export: those that the coordinator would send to a stage."""

from collections.abc import Sequence

from llmpq.calibration_text import samples_of
from llmpq.model import read_shape
from llmpq.tokenizer import load_tokenizer
from stage_server.sample_run import Samples


def calibration_samples(model: str) -> Samples:
    """Token ids of the calibration text.

    Raises:
        NotFoundError, InvalidInputError: As `load_tokenizer`.
    """
    tokenizer = load_tokenizer(model)

    def encode(text: str) -> Sequence[int]:
        token_ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
        return token_ids

    return tuple(map(tuple, samples_of(encode, read_shape(model).max_positions)))
