"""What the coordinator asks a stage to rate, and how far that is."""

from dataclasses import dataclass

from llmpq.plan import INDICATORS, NEAREST, LayerPrecision, LayerSensitivity, Rounding
from llmpq.stage_load import TokenSequence


@dataclass(frozen=True)
class RatingRequest:
    """Mirror of the message `MeasureSensitivityRequest`; see there for each field."""

    model: str
    schemes: tuple[str, ...]
    group_size: int
    samples: tuple[TokenSequence, ...]
    indicator: str = ""
    rounding: Rounding = NEAREST

    @property
    def effective_indicator(self) -> str:
        """The indicator, the default filled in."""
        return self.indicator or INDICATORS[0]

    @property
    def token_ids(self) -> tuple[tuple[int, ...], ...]:
        """The samples as plain tuples."""
        return tuple(sample.token_ids for sample in self.samples)

    def precision(self, scheme: str) -> LayerPrecision:
        """A scheme with the group size that is asked for."""
        return LayerPrecision(scheme, self.group_size)


@dataclass(frozen=True)
class RatingProgress:
    """Mirror of the message `MeasureSensitivityResponse`; see there for each field."""

    sensitivities: tuple[LayerSensitivity, ...]
    steps_done: int
    steps_total: int
