"""Latency models: from a few measured points to the time of any micro-batch.

LLM-PQ fits ordinary least squares on [b, s, b*s, b*s^2, 1] for prefill and [b*(s+i), b, i, 1] for decode, from dozens
of points for each device and precision. A quick profile has four to nine, and ordinary least squares then predicts
negative times for small batches. These models have fewer features, each with a physical meaning and a coefficient that
cannot be negative, and are fitted to the relative error, so that short times are as good as long ones:

- prefill layer: 1, rows, pairs (start, matrix products, attention);
- decode layer: 1, sqrt(rows), rows, pairs (reading the weights; the root follows matrix products that gain from their
  first few rows, as on CPUs);
- embedding: 1, rows;
- head: 1, sqrt(sequences), sequences: only the last row of each sequence has logits.
"""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Self

import numpy as np
from scipy.optimize import nnls

from llmpq.device import DeviceProfile, LatencyPoint, ModelPart, Phase
from llmpq.errors import InvalidInputError
from planner_svc.workload import Load

Features = Callable[[Load], tuple[float, ...]]


def prefill_features(load: Load) -> tuple[float, ...]:
    """Of a layer in prefill."""
    return 1.0, load.num_rows, load.num_pairs


def decode_features(load: Load) -> tuple[float, ...]:
    """Of a layer in decode."""
    return 1.0, sqrt(load.num_rows), load.num_rows, load.num_pairs


def embedding_features(load: Load) -> tuple[float, ...]:
    """Of the embedding, in both phases."""
    return 1.0, load.num_rows


def head_features(load: Load) -> tuple[float, ...]:
    """Of the head, in both phases."""
    return 1.0, sqrt(load.num_sequences), load.num_sequences


class LatencyModel:
    """Seconds as a combination of features with coefficients that are not negative.

    Args:
        features: What the time depends on.

    Attributes:
        coefficients_: (features) float64, seconds per feature; there after `fit`.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.coefficients_ = np.zeros(0)

    def fit(self, loads: Sequence[Load], seconds: Sequence[float]) -> Self:
        """Minimizes sum(((predicted - measured) / measured)^2) over coefficients >= 0; each time MUST be positive."""
        rows = np.array([self.features(load) for load in loads]) / np.array(seconds)[:, None]
        scales = np.linalg.norm(rows, axis=0)
        scales[scales == 0] = 1.0
        solution, _ = nnls(rows / scales, np.ones(len(rows)))
        self.coefficients_ = solution / scales
        return self

    def predict(self, load: Load) -> float:
        """Seconds; never negative."""
        return float(np.dot(self.features(load), self.coefficients_))


class DeviceLatency:
    """The fitted models of one device.

    Attributes:
        layers_: Model of one layer by (scheme, phase), for every scheme with points.
        embedding_: Model of the embedding.
        head_: Model of final norm, head and sampling.
    """

    def __init__(self) -> None:
        self.layers_: dict[tuple[str, Phase], LatencyModel] = {}
        self.embedding_ = LatencyModel(embedding_features)
        self.head_ = LatencyModel(head_features)

    def fit(self, profile: DeviceProfile, field: str) -> Self:
        """Fits all models to a device's points; a scheme without points is left out.

        Args:
            profile: The device.
            field: Path of the profile in the request, for errors.

        Raises:
            InvalidInputError: There are no points for a part, or a scheme has points of one phase only.
        """
        points = _Points(profile, field)
        self.embedding_ = _fitted(embedding_features, points.of(ModelPart.EMBEDDING))
        self.head_ = _fitted(head_features, points.of(ModelPart.HEAD))
        for scheme in sorted({point.scheme for point in points.of(ModelPart.LAYER)}):
            for phase, features in _LAYER_FEATURES.items():
                self.layers_[scheme, phase] = _fitted(features, points.of(ModelPart.LAYER, scheme, phase))
        return self

    @property
    def schemes(self) -> frozenset[str]:
        """Schemes that a layer can be timed in."""
        return frozenset(scheme for scheme, _ in self.layers_)


_LAYER_FEATURES: dict[Phase, Features] = {Phase.PREFILL: prefill_features, Phase.DECODE: decode_features}


class _Points:
    """The points of one device, by what they measure."""

    def __init__(self, profile: DeviceProfile, field: str) -> None:
        self._profile = profile
        self._field = field

    def of(self, part: ModelPart, scheme: str = "", phase: Phase | None = None) -> list[LatencyPoint]:
        found = [
            point
            for point in self._profile.points
            if point.part is part and scheme in {"", point.scheme} and phase in {None, point.phase}
        ]
        if not found:
            what = " ".join(
                filter(None, (scheme, part.value.removeprefix("MODEL_PART_").lower(), phase and phase.value))
            )
            raise InvalidInputError(
                f"Device {self._profile.device_id} has no latency points for: {what}. Profile it for this model.",
                reason="NO_LATENCY_POINTS",
                subject=self._field + ".points",
            )
        return found


def _fitted(features: Features, points: list[LatencyPoint]) -> LatencyModel:
    loads = [Load.of(point.num_sequences, point.num_tokens, point.past_tokens) for point in points]
    return LatencyModel(features).fit(loads, [point.duration_ns / 1e9 for point in points])
