"""The layers of a slice, rounded as they will be served: while one is rounded, the next is read."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from llmpq.model import ModelFiles
from llmpq.plan import LayerPrecision, Rounding
from llmpq.stored_layers import other_precision
from quantizer.input_statistics import InputStatistics
from stage_server.device import ComputeDevice
from stage_server.guided_calibration import guided_layers
from stage_server.host_memory import large_blocks_apart
from stage_server.layer_cache import LayerCache
from stage_server.loader import ModelLoader
from stage_server.read_ahead import ReadAhead
from stage_server.sample_run import Samples
from stage_server.source import SourceLayer


class LayerRounder:
    """Gives rounded layers from wherever that is cheapest: as the checkpoint stores them, from the cache, or made.

    Memory beyond the result, unless layers are calibrated: the matrix being rounded with the temporaries of that, the
    matrix being read, whose parts are stacked, and the codes of the layer so far, a byte each; together less than two
    layers in 16 bits (`tests/stage_server/test_loading_memory.py`).

    Args:
        loader: Of the model.
        device: That rounds and calibrates.
        rounding: How.
        samples: Calibration sequences, where the rounding needs them.

    Raises:
        InvalidInputError: $LLMPQ_CACHE_LIMIT is not a size.
    """

    def __init__(self, loader: ModelLoader, device: ComputeDevice, rounding: Rounding, samples: Samples = ()) -> None:
        self._loader = loader
        self._device = device
        self._rounding = rounding
        self._samples = samples
        fingerprint = ModelFiles.locate(loader.model).fingerprint
        shapes = loader.source.shape.linear_shapes
        self._cache = LayerCache(fingerprint, rounding, samples, device.compute_dtype, shapes)

    def layers(self, precisions: Mapping[int, LayerPrecision]) -> Iterator[SourceLayer]:
        """Each of the layers once, in whatever order they come, their linears rounded and on the device.

        Args:
            precisions: Of each layer, by its index.

        Raises:
            NotFoundError, UnavailableError, InvalidInputError: As ModelSource.layer, `round_weight` and
                `guided_layers`; or another precision than a layer is stored at.
        """
        uncalibrated: dict[int, LayerPrecision] = {}
        with large_blocks_apart(), ReadAhead(self._parts(precisions, uncalibrated)) as parts:
            yield from self._whole(parts, precisions)
        if uncalibrated:
            for layer in guided_layers(self._loader, self._device, self._samples, tuple(uncalibrated)):
                precision = precisions[layer.index]
                rounded = rounded_layer(self._loader, layer.source, precision, self._rounding, layer.inputs)
                self._cache.save(rounded, precision)
                yield rounded

    def _parts(
        self, precisions: Mapping[int, LayerPrecision], uncalibrated: dict[int, LayerPrecision]
    ) -> Iterator[SourceLayer]:
        """Reads layers, whole from the cache or in parts; adds those to `uncalibrated` that have to be calibrated."""
        for index, precision in precisions.items():
            is_stored = self._loader.source.stored_precision(index) is not None
            cached = None if is_stored else self._cache.load(index, precision)
            if cached is not None:
                yield cached
            elif self._rounding.needs_calibration and precision.scheme != "w16" and not is_stored:
                uncalibrated[index] = precision
            else:
                yield from self._loader.source.parts(index)

    def _whole(self, parts: Iterator[SourceLayer], precisions: Mapping[int, LayerPrecision]) -> Iterator[SourceLayer]:
        """Rounds the parts of layers, and joins them."""
        layer: SourceLayer | None = None
        for part in parts:
            is_made = part.stored_at is None
            rounded = rounded_layer(self._loader, part, precisions[part.index], self._rounding)
            layer = layer.joined(rounded) if layer else rounded
            del part, rounded  # of which the next ones take the place
            if len(layer.linears) == len(self._loader.spec.names.linears):
                if is_made:
                    self._cache.save(layer, precisions[layer.index])
                yield layer
                layer = None


def rounded_layer(
    loader: ModelLoader,
    part: SourceLayer,
    precision: LayerPrecision,
    rounding: Rounding,
    inputs: Mapping[str, InputStatistics] | None = None,
) -> SourceLayer:
    """A layer, or a part of one, with its linears rounded on the device, unless they are stored so.

    Args:
        loader: Of the model.
        part: As its source gives it.
        precision: Of all its linears.
        rounding: How.
        inputs: What the linears read, by role, for roundings that need it.

    Raises:
        InvalidInputError: It is stored at another precision, or as `round_weight`.
    """
    if part.stored_at is not None and part.stored_at != precision:
        raise other_precision(f"Layer {part.index} of the model at '{loader.model}'", part.stored_at, precision)
    linears = {
        role: replace(linear, stored=loader.round_linear(linear, precision, rounding, (inputs or {}).get(role)))
        for role, linear in part.linears.items()
    }
    return replace(part, linears=linears, stored_at=precision)
