"""Layers as they would be served at some precision, to be tried out beside the exact ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from llmpq.plan import LayerPrecision, Rounding
from quantizer.input_statistics import InputStatistics
from stage_server.calibration import recorded_inputs
from stage_server.decoder_layer import DecoderLayer
from stage_server.loader import ModelLoader
from stage_server.source import SourceLayer


def served_layer(
    loader: ModelLoader,
    source: SourceLayer,
    precision: LayerPrecision,
    rounding: Rounding,
    inputs: Mapping[str, InputStatistics],
) -> DecoderLayer:
    """A layer of floats, rounded and built; `inputs` by role, for roundings that need them."""
    linears = {
        role: replace(linear, stored=loader.round_linear(linear, precision, rounding, inputs.get(role)))
        for role, linear in source.linears.items()
    }
    return loader.build_layer(replace(source, linears=linears, stored_at=precision), precision)


@contextmanager
def calibrating(layer: DecoderLayer, rounding: Rounding) -> Iterator[Mapping[str, InputStatistics]]:
    """Takes the statistics that a rounding needs of what the linears of a layer read inside the block, if any."""
    if not rounding.needs_calibration:
        yield {}
        return
    with recorded_inputs(layer, InputStatistics) as inputs:
        yield inputs
