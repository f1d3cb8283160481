"""The unit of sensitivities, and random ones."""

import pytest

from coordinator.omega import normalize, random_ratings
from llmpq.errors import InvalidInputError
from llmpq.plan import LayerSensitivity
from llmpq.schemes import SCHEMES


def test_uniform_w4_sums_to_one() -> None:
    """Normalized, w4 on every layer sums to 1 and all ratios are kept."""
    raw = [
        LayerSensitivity(layer, scheme, omega * (layer + 1))
        for layer in range(3)
        for scheme, omega in (("w8", 0.5), ("w4", 20.0), ("w3", 90.0))
    ]
    normalized = normalize(raw)
    assert sum(entry.omega for entry in normalized if entry.scheme == "w4") == pytest.approx(1.0)
    assert [(entry.layer, entry.scheme) for entry in normalized] == [(entry.layer, entry.scheme) for entry in raw]
    assert [entry.omega * 120 for entry in normalized] == pytest.approx([entry.omega for entry in raw])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "sum to 0"),
        ([LayerSensitivity(0, "w4", 1.0), LayerSensitivity(1, "w8", 1.0)], "layer 1"),
        ([LayerSensitivity(0, "w4", 0.0)], "sum to 0"),
    ],
)
def test_normalizing_needs_w4_on_every_layer(raw: list[LayerSensitivity], message: str) -> None:
    """Without a rating for w4 on each layer there is no unit, and the message says what is missing."""
    with pytest.raises(InvalidInputError, match=message) as refused:
        normalize(raw)
    assert refused.value.reason == "NO_REFERENCE_SCHEME"


def test_random_ratings_never_favour_fewer_bits() -> None:
    """In every layer w16 costs nothing, and each scheme costs more than those of more bits."""
    ratings = random_ratings(40, SCHEMES, "a model")
    for layer in range(40):
        omegas = {entry.scheme: entry.omega for entry in ratings if entry.layer == layer}
        assert omegas["w16"] == 0 < omegas["w8"] < omegas["w8a8"] < omegas["w4"] < omegas["w3"]


def test_random_ratings_are_drawn_once_for_each_seed() -> None:
    """The same seed gives the same ratings, whatever else is rated; another seed ranks layers otherwise."""
    ratings = random_ratings(40, ["w8", "w4"], "a model")
    assert [entry for entry in ratings if entry.scheme == "w4"] == list(random_ratings(40, ["w4"], "a model"))
    rankings = [
        sorted(range(40), key=[entry.omega for entry in random_ratings(40, ["w4"], seed)].__getitem__)
        for seed in ("a model", "another")
    ]
    assert rankings[0] != rankings[1]
