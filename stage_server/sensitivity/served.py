"""Layers as they would be served at some precision, to be tried beside the exact ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate

from llmpq.plan import Rounding
from llmpq.rating import RatingRequest
from quantizer.input_statistics import InputStatistics
from stage_server.calibration import recorded_inputs
from stage_server.decoder_layer import DecoderLayer
from stage_server.layer_rounding import rounded_layer
from stage_server.loader import ModelLoader
from stage_server.sample_run import EXACT, Samples
from stage_server.source import SourceLayer


def served_layers(
    loader: ModelLoader, source: SourceLayer, request: RatingRequest, inputs: Mapping[str, InputStatistics]
) -> Iterator[tuple[str, DecoderLayer]]:
    """A layer at each of the schemes to be rated, but for the exact one, which costs nothing.

    Args:
        loader: Of the model.
        source: The layer as floats.
        request: Says which schemes, groups and rounding.
        inputs: What its linears read, by role, for roundings that need it.
    """
    for scheme in request.schemes:
        if scheme != EXACT.scheme:
            precision = request.precision(scheme)
            rounded = rounded_layer(loader, source, precision, request.rounding, inputs)
            yield scheme, loader.build_layer(rounded, precision)


@contextmanager
def calibrating(layer: DecoderLayer, rounding: Rounding) -> Iterator[Mapping[str, InputStatistics]]:
    """Takes the statistics that a rounding needs of what the linears of a layer read inside the block, if any."""
    if not rounding.needs_calibration:
        yield {}
        return
    with recorded_inputs(layer, InputStatistics) as inputs:
        yield inputs


def num_samples_within(samples: Samples, max_tokens: int) -> int:
    """How many samples, from the first on, have no more tokens than that together; at least one."""
    return sum(total <= max_tokens for total in accumulate(map(len, samples))) or 1
