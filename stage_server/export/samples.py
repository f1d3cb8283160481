"""The calibration samples of an export: those that the coordinator would send to a stage."""

from collections.abc import Sequence

from transformers import AutoTokenizer

from llmpq.calibration_text import samples_of
from llmpq.errors import InvalidInputError
from llmpq.model import ModelFiles, read_shape
from stage_server.sample_run import Samples


def calibration_samples(model: str) -> Samples:
    """Token ids of the calibration text.

    Raises:
        InvalidInputError: The model has no tokenizer that transformers can read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(**ModelFiles.locate(model).from_pretrained)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInputError(
            f"The model at '{model}' has no tokenizer to calibrate with: {error}. Round by a method that needs none.",
            subject=model,
        ) from error

    def encode(text: str) -> Sequence[int]:
        token_ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
        return token_ids

    return tuple(map(tuple, samples_of(encode, read_shape(model).max_positions)))
