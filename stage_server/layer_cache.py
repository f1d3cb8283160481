"""Rounded layers on disk, so that a stage that loads again neither rounds nor calibrates.

What becomes of a layer depends on the model, the precision, the way of rounding and the code that rounds, and where it
is calibrated on the samples and the type that they are computed in; not on the split, nor on the precision of other
layers. A digest of all that names a directory, with a file for each layer that has all of it: the model's own files
need not even be there.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog
import torch

import quantizer
import stage_server
from llmpq.cache_dir import cache_directory, cache_limit_bytes
from llmpq.code_digest import code_digest
from llmpq.errors import InvalidInputError, NotFoundError
from llmpq.plan import LayerPrecision, Rounding
from llmpq.schemes import SCHEMES
from stage_server.layer_file import read_layer, write_layer
from stage_server.lru_directory import LruDirectory
from stage_server.source import SourceLayer

log = structlog.get_logger(__name__)

#: The packages that calibrate, round and compute.
CODE = (Path(quantizer.__file__), Path(stage_server.__file__))


class LayerCache:
    """The rounded layers of one model, rounded in one way.

    Args:
        fingerprint: Of the model's files.
        rounding: How they are rounded.
        samples: Token ids that they are calibrated on.
        compute_dtype: Type in which these are computed.
        shapes: (out, in) of each linear, by role.
    """

    def __init__(
        self,
        fingerprint: str,
        rounding: Rounding,
        samples: tuple[tuple[int, ...], ...],
        compute_dtype: torch.dtype,
        shapes: Mapping[str, tuple[int, int]],
    ) -> None:
        self._files = LruDirectory(cache_directory() / "rounded", cache_limit_bytes())
        self._rounding = rounding
        calibration = (samples, compute_dtype) if rounding.needs_calibration else None
        self._subject = repr((fingerprint, calibration, code_digest(*CODE)))
        self._shapes = dict(shapes)

    def keeps(self, precision: LayerPrecision) -> bool:
        """Whether layers of a precision are kept: those that take longer to round than to read."""
        scheme = SCHEMES[precision.scheme]
        is_fitted = self._rounding.effective_method == "hqq" and scheme.is_grouped
        return scheme.weight_bits < SCHEMES["w16"].weight_bits and (is_fitted or self._rounding.needs_calibration)

    def load(self, index: int, precision: LayerPrecision) -> SourceLayer | None:
        """A layer, its linears rounded, on the CPU; None if it is not there, or damaged."""
        path = self._files.find(self._name(index, precision)) if self.keeps(precision) else None
        if path is None:
            return None
        try:
            layer = read_layer(path)
        except (InvalidInputError, NotFoundError) as error:
            log.warning("rounded_layer.damaged", file=str(path), error=error.message)
            return None
        shapes = {role: tuple(linear.stored.shape) for role, linear in layer.linears.items()}
        return layer if (layer.index, layer.stored_at, shapes) == (index, precision, self._shapes) else None

    def save(self, layer: SourceLayer, precision: LayerPrecision) -> None:
        """Keeps a layer that was rounded to a precision, if such layers are kept."""
        if self.keeps(precision):
            self._files.store(self._name(layer.index, precision), partial(write_layer, layer))

    def _name(self, index: int, precision: LayerPrecision) -> str:
        rounding = self._rounding
        if not SCHEMES[precision.scheme].has_int8_activations:  # others are rounded alike
            rounding = replace(rounding, is_unrotated=False)
        digest = hashlib.sha256(repr((self._subject, rounding, precision)).encode()).hexdigest()
        return f"{digest[:32]}/layer-{index}.safetensors"
