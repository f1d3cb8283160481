"""The unit of sensitivities, and sensitivities that nothing is measured for."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

from llmpq.errors import InvalidInputError
from llmpq.plan import LayerSensitivity
from llmpq.schemes import SCHEMES

#: The scheme that omega is measured in: used on every layer it sums to 1.
REFERENCE_SCHEME = "w4"


def normalize(ratings: Sequence[LayerSensitivity]) -> tuple[LayerSensitivity, ...]:
    """Scales the ratings of a whole model so that w4 on every layer sums to 1.

    That makes a quality weight or budget mean the same for every model and indicator. The unit is fixed, hence w4 has
    to be rated even if it may not be used; drop its entries afterwards.

    Raises:
        InvalidInputError: A layer has no rating for w4, or they sum to nothing.
    """
    reference = {entry.layer: entry.omega for entry in ratings if entry.scheme == REFERENCE_SCHEME}
    unrated = {entry.layer for entry in ratings} - reference.keys()
    unit = sum(reference.values())
    if unrated or not unit > 0:
        what = f"layer {min(unrated)} has no rating" if unrated else f"the ratings sum to {unit:g}"
        raise InvalidInputError(
            f"Cannot normalize sensitivities, whose unit is {REFERENCE_SCHEME} on every layer: {what} for it.",
            reason="NO_REFERENCE_SCHEME",
            subject="sensitivities",
        )
    return tuple(replace(entry, omega=entry.omega / unit) for entry in ratings)


def random_ratings(num_layers: int, schemes: Iterable[str], seed: str) -> tuple[LayerSensitivity, ...]:
    """Ratings to compare others with: which layers matter is drawn, which schemes are worse is not.

    A layer's draw counts for all of its schemes, in proportion to the variance that each adds to outputs (see
    `_relative_noise`), so fewer bits never look better. The same seed gives the same ratings, whatever the schemes.
    """
    generator = Random(seed)  # noqa: S311 nothing is kept secret by it
    draws = [1.0 - generator.random() for _ in range(num_layers)]  # in (0, 1]: no layer is free
    return tuple(
        LayerSensitivity(layer, scheme, draw * _relative_noise(scheme))
        for layer, draw in enumerate(draws)
        for scheme in schemes
    )


def _relative_noise(scheme: str) -> float:
    """Variance of rounding errors relative to w4: a bit less doubles the step; int8 activations add as much again."""
    if scheme == "w16":
        return 0.0
    bits_less = SCHEMES[REFERENCE_SCHEME].weight_bits - SCHEMES[scheme].weight_bits
    return 4.0**bits_less * (2 if SCHEMES[scheme].has_int8_activations else 1)
