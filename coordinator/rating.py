"""What quantizing each layer costs in quality: rated by the members, each scheme once."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace

from coordinator.calibration import calibration_samples
from coordinator.cluster import Member
from coordinator.links import OnMeasured, StageLink
from coordinator.omega import REFERENCE_SCHEME, normalize, random_ratings
from coordinator.status import Report, counting
from llmpq import __version__
from llmpq.cache_dir import cache_directory
from llmpq.calibration_text import NUM_RATING_SAMPLES, rating_text_digest
from llmpq.cluster_file import CPU_CLASSES
from llmpq.errors import PreconditionError
from llmpq.measurements import MeasurementCache
from llmpq.model import ModelFiles, read_shape
from llmpq.plan import LayerSensitivity, PlanOptions
from llmpq.rating import RatingRequest
from llmpq.stage_load import TokenSequence

#: How schemes round and indicators rate. Ratings of another design are measured again.
_DESIGN = 2


class LayerRater:
    """Has layers rated, and keeps the ratings with what else this host can make again.

    They depend on the model, not on the devices: so a mesh that is started for a single call need not rate either.
    """

    def __init__(self) -> None:
        self._cache = MeasurementCache(cache_directory() / "ratings")

    async def rate(
        self,
        model: str,
        schemes: Sequence[str],
        options: PlanOptions,
        members: Sequence[Member],
        report: Report,
    ) -> tuple[LayerSensitivity, ...]:
        """Normalized sensitivities of all layers at `schemes`, by the indicator and rounding of the options.

        Raises:
            PreconditionError: No member can run one of the schemes, or w4, the unit.
            NotFoundError: The model is not there.
            MeshError: As StageService.MeasureSensitivity.
        """
        rated = sorted({*schemes, REFERENCE_SCHEME})
        if options.effective_indicator == "random":
            shape = await asyncio.to_thread(read_shape, model)
            ratings = random_ratings(shape.num_layers, rated, ModelFiles.locate(model).fingerprint)
        else:
            ratings = await self._measured(model, rated, options, members, report)
        return tuple(entry for entry in normalize(ratings) if entry.scheme in schemes)

    async def _measured(
        self,
        model: str,
        schemes: Sequence[str],
        options: PlanOptions,
        members: Sequence[Member],
        report: Report,
    ) -> tuple[LayerSensitivity, ...]:
        """Ratings that are not normalized; what was measured before comes from the cache."""
        subject = {
            "fingerprint": ModelFiles.locate(model).fingerprint,
            "group_size": options.effective_group_size,
            "design": _DESIGN,
            "rounding": asdict(replace(options.rounding, method=options.rounding.effective_method)),
            "indicator": options.effective_indicator,
            "samples": rating_text_digest(),
            "version": __version__,
        }
        ratings = {scheme: self._cache.load(LayerSensitivity, subject | {"scheme": scheme}) for scheme in schemes}
        unrated = [scheme for scheme, entries in ratings.items() if entries is None]
        if unrated:
            measured = await _measure(model, unrated, options, members, report)
            for scheme in unrated:
                entries = tuple(entry for entry in measured if entry.scheme == scheme)
                with suppress(OSError):  # a cache that cannot be written costs time, and no plan
                    self._cache.save(subject | {"scheme": scheme}, entries)
                ratings[scheme] = entries
        return tuple(entry for entries in ratings.values() for entry in entries or ())


async def _measure(
    model: str,
    schemes: Sequence[str],
    options: PlanOptions,
    members: Sequence[Member],
    report: Report,
) -> tuple[LayerSensitivity, ...]:
    """Has the members rate all layers at `schemes`; raises as `rate`."""
    raters = _schemes_of_raters(members, schemes)
    doing = f"Measuring what quantizing each layer costs in quality, by indicator {options.effective_indicator}"
    report(f"{doing}.")
    samples = await asyncio.to_thread(calibration_samples, model)
    request = RatingRequest(
        model=model,
        schemes=(),
        group_size=options.effective_group_size,
        samples=tuple(TokenSequence(tuple(sample)) for sample in samples[:NUM_RATING_SAMPLES]),
        indicator=options.effective_indicator,
        rounding=options.rounding,
    )
    on_measured = counting(report, doing, "steps")
    asking = [_ask(rater, replace(request, schemes=of_rater), on_measured) for rater, of_rater in raters.items()]
    return tuple(entry for answer in await asyncio.gather(*asking) for entry in answer)


def _schemes_of_raters(members: Sequence[Member], schemes: Iterable[str]) -> dict[Member, tuple[str, ...]]:
    """Who rates which schemes: each the device with the largest budget, then the fastest, of those that can run it.

    Raises:
        PreconditionError: There is none.
    """
    schemes_of: dict[Member, tuple[str, ...]] = {}
    for scheme in schemes:
        able = [member for member in members if scheme in member.description.schemes]
        if not able:
            raise PreconditionError(
                f"No device can run {scheme}, so no layer can be rated at it. Start a stage server that can.",
                reason="NO_DEVICES",
                subject=scheme,
            )
        rater = max(able, key=_fitness)
        schemes_of[rater] = (*schemes_of.get(rater, ()), scheme)
    return schemes_of


def _fitness(member: Member) -> tuple[int, int, int]:
    """The greater the better: budget, then threads, then instruction set."""
    device = member.description
    age = CPU_CLASSES.index(device.cpu_class) if device.cpu_class in CPU_CLASSES else 0
    return device.memory_budget_bytes, device.num_threads, -age


async def _ask(rater: Member, request: RatingRequest, on_progress: OnMeasured) -> tuple[LayerSensitivity, ...]:
    async with StageLink.opened(rater) as stage:
        return await stage.rate(request, on_progress)
