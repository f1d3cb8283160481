"""Latency models: from measured points to the time of any micro-batch.

LLM-PQ fits ordinary least squares on [b, s, b*s, b*s^2, 1] for prefill and [b*(s+i), b, i, 1] for decode (its section
4.1). Kernels, however, change their path with the number of rows, so that time is no straight line of it, and ordinary
least squares predicts negative times for small batches. Here a layer takes

    prefill:  f(rows) + a * sequences + b * pairs
    decode:   f(rows) + c * pairs

where pairs are a row with a token that it attends to, f is piecewise linear between the numbers of rows that were
measured, never falls, and belongs to one scheme and phase; a, b and c are not negative. They are the cost of attention,
which the schemes share: a scheme that was measured at one context for each number of rows takes them from one that was
measured at several. Embedding, head and what a frame costs besides are piecewise linear in rows or sequences.

Other work on a host only adds to what is measured, so a time longer than that of more work is not believed. Fits
minimize the relative error, so that short times are as good as long ones. `llmpq fidelity` says how good they are.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from llmpq.device import DeviceProfile, LatencyPoint, ModelPart, Phase
from llmpq.errors import InvalidInputError
from planner_svc.workload import Load

Floats = NDArray[np.float64]
Features = Callable[[Load], tuple[float, ...]]


def no_features(load: Load) -> tuple[float, ...]:  # noqa: ARG001 one of several functions
    """Of what rows or sequences alone decide on."""
    return ()


def prefill_attention(load: Load) -> tuple[float, ...]:
    """What attention in prefill depends on: it is computed sequence by sequence."""
    return load.num_sequences, load.num_pairs


def decode_attention(load: Load) -> tuple[float, ...]:
    """What attention in decode depends on: it is computed for all sequences at once."""
    return (load.num_pairs,)


def rows_of(load: Load) -> float:
    """New tokens."""
    return load.num_rows


def sequences_of(load: Load) -> float:
    """Sequences."""
    return load.num_sequences


class LatencyModel:
    """Seconds as f(size) + coefficients * features; see the module.

    Args:
        features: What the time depends on besides its size.
        size: What f is a function of.

    Attributes:
        knots_: (knots) sizes that were measured, ascending; there after `fit`.
        rises_: (knots) f at the first knot, and what it rises by from each knot to the next; not negative.
        coefficients_: (features) seconds per feature; not negative.
    """

    def __init__(self, features: Features = no_features, size: Callable[[Load], float] = rows_of) -> None:
        self.features = features
        self.size = size
        self.knots_ = np.zeros(0)
        self.rises_ = np.zeros(0)
        self.coefficients_ = np.zeros(0)

    def fit(self, loads: Sequence[Load], seconds: Sequence[float], coefficients: Floats | None = None) -> Self:
        """Minimizes sum(((predicted - measured) / measured)^2).

        Args:
            loads: What was measured.
            seconds: How long each took; positive.
            coefficients: (features) to take as given.
        """
        sizes = np.array([self.size(load) for load in loads])
        features = np.array([self.features(load) for load in loads]).reshape(len(loads), -1)
        measured_s = _undisturbed(np.column_stack((sizes, features)), np.array(seconds))
        self.knots_ = np.unique(sizes)
        columns = self._ramps(sizes)
        target_s = measured_s
        if coefficients is None:
            columns = np.hstack((columns, features))
        else:
            target_s = np.maximum(measured_s - features @ coefficients, 0.0)
        solution = _fit_relative(columns, target_s, measured_s)
        self.rises_ = solution[: len(self.knots_)]
        self.coefficients_ = solution[len(self.knots_) :] if coefficients is None else coefficients
        return self

    def predict(self, load: Load) -> float:
        """Seconds; never negative. Beyond the largest size measured, f goes on as over the upper half of the sizes.

        The last two points are near each other: what lies between them is noise as much as it is a slope.
        """
        size, largest = self.size(load), self.knots_[-1]
        half = self.knots_[max(np.searchsorted(self.knots_, largest / 2, side="right") - 1, 0)]
        f_s, half_s = (self._ramps(np.array([min(size, largest), half])) @ self.rises_).tolist()
        if size > largest > half:
            f_s += (f_s - half_s) * (size - largest) / (largest - half)
        return float(f_s + np.dot(self.features(load), self.coefficients_))

    def _ramps(self, sizes: Floats) -> Floats:
        """(sizes, knots): 1, and for each further knot how much of the way to it from the one before is done."""
        ways = np.diff(self.knots_)
        done = np.clip((sizes[:, None] - self.knots_[:-1]) / ways, 0.0, 1.0)
        return np.hstack((np.ones((len(sizes), 1)), done))


class DeviceLatency:
    """The fitted models of one device.

    Attributes:
        layers_: Model of one layer by (scheme, phase), for every scheme with points.
        embedding_: Model of the embedding.
        head_: Model of final norm, head and sampling.
        frame_: Model of what a stage does for a frame besides; nothing where that was not measured.
    """

    def __init__(self) -> None:
        self.layers_: dict[tuple[str, Phase], LatencyModel] = {}
        self.embedding_ = LatencyModel()
        self.head_ = LatencyModel(size=sequences_of)
        self.frame_ = LatencyModel()

    def fit(self, profile: DeviceProfile, field: str) -> Self:
        """Fits all models to a device's points; a scheme without points is left out.

        Args:
            profile: The device.
            field: Path of the profile in the request, for errors.

        Raises:
            InvalidInputError: There are no points for a part, or a scheme has points of one phase only.
        """
        points = _Points(profile, field)
        self.embedding_.fit(*_loads_and_seconds(points.of(ModelPart.EMBEDDING)))
        self.head_.fit(*_loads_and_seconds(points.of(ModelPart.HEAD)))
        if points.has(ModelPart.FRAME):
            self.frame_.fit(*_loads_and_seconds(points.of(ModelPart.FRAME)))
        schemes = sorted({point.scheme for point in points.of(ModelPart.LAYER)})
        for phase, features in _ATTENTION.items():
            of_scheme = {scheme: points.of(ModelPart.LAYER, scheme, phase) for scheme in schemes}
            for scheme, model in _layer_models(of_scheme, features).items():
                self.layers_[scheme, phase] = model
        return self

    @property
    def schemes(self) -> frozenset[str]:
        """Schemes that a layer can be timed in."""
        return frozenset(scheme for scheme, _ in self.layers_)

    def outside_s(self, load: Load, *, is_first: bool, is_last: bool) -> float:
        """Seconds outside the layers: of the frame; of the embedding on the first stage; of the head on the last."""
        frame = self.frame_.predict(load) if len(self.frame_.knots_) else 0.0
        embedding = self.embedding_.predict(load) if is_first else 0.0
        return frame + embedding + (self.head_.predict(load) if is_last else 0.0)


_ATTENTION: dict[Phase, Features] = {Phase.PREFILL: prefill_attention, Phase.DECODE: decode_attention}


def _layer_models(points: dict[str, list[LatencyPoint]], features: Features) -> dict[str, LatencyModel]:
    """The models of one phase; schemes measured at one context take the cost of attention from the richest one."""
    richest = max(points, key=lambda scheme: len(points[scheme]))
    shared = LatencyModel(features).fit(*_loads_and_seconds(points[richest])).coefficients_
    return {
        scheme: LatencyModel(features).fit(
            *_loads_and_seconds(of_scheme), None if _has_contexts(of_scheme) or scheme == richest else shared
        )
        for scheme, of_scheme in points.items()
    }


def _has_contexts(points: Iterable[LatencyPoint]) -> bool:
    """Whether any number of rows was measured at several contexts."""
    sizes = {(point.num_sequences, point.num_tokens, point.past_tokens) for point in points}
    return max(Counter(sequences * tokens for sequences, tokens, _ in sizes).values()) > 1


def _undisturbed(sizes: Floats, measured_s: Floats) -> Floats:
    """For each point the least time of all that are at least as large in every respect.

    More work never takes less time, but other work on a host adds to some of the times.

    Args:
        sizes: (points, respects).
        measured_s: (points).
    """
    is_larger = (sizes[None, :, :] >= sizes[:, None, :]).all(axis=2)
    return np.asarray(np.where(is_larger, measured_s[None, :], np.inf).min(axis=1))


def _fit_relative(columns: Floats, target_s: Floats, measured_s: Floats) -> Floats:
    """Least squares with solutions that are not negative, each row weighed by 1 / measured."""
    rows = columns / measured_s[:, None]
    scales = np.linalg.norm(rows, axis=0)
    scales[scales == 0] = 1.0
    solution, _ = nnls(rows / scales, target_s / measured_s)
    return np.asarray(solution / scales)


class _Points:
    """The points of one device, by what they measure."""

    def __init__(self, profile: DeviceProfile, field: str) -> None:
        self._profile = profile
        self._field = field

    def has(self, part: ModelPart) -> bool:
        return any(point.part is part for point in self._profile.points)

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


def _loads_and_seconds(points: Iterable[LatencyPoint]) -> tuple[list[Load], list[float]]:
    points = list(points)
    loads = [Load.of(point.num_sequences, point.num_tokens, point.past_tokens) for point in points]
    return loads, [point.duration_ns / 1e9 for point in points]
