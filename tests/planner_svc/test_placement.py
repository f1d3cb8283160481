"""Whether layers fit, against brute force."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from planner_svc.placement import fits, short_bytes


def random_layers(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bytes (stages, layers) of layers of unlike sizes, some of which a stage cannot run, and the stages' memory."""
    rng = np.random.default_rng(seed)
    num_stages, num_layers = int(rng.integers(1, 4)), int(rng.integers(3, 8))
    sizes = np.tile(rng.integers(1, 9, num_layers), (num_stages, 1)).astype(float)
    sizes[rng.random(sizes.shape) < 0.1] = np.inf
    return sizes, rng.integers(-2, 20, num_stages).astype(float)


def fits_somehow(sizes: np.ndarray, capacity: np.ndarray) -> bool:
    """Tries all cuts."""
    num_stages, num_layers = sizes.shape
    for cuts in combinations(range(1, num_layers), num_stages - 1):
        shares = pairwise((0, *cuts, num_layers))
        if all(sizes[stage, slice(*share)].sum() <= capacity[stage] for stage, share in enumerate(shares)):
            return True
    return False


@pytest.mark.parametrize("seed", range(60))
def test_equals_brute_force(seed: int) -> None:
    """Layers fit if there are cuts at which every stage holds its share; what is short is then nothing."""
    sizes, capacity = random_layers(seed)
    expected = fits_somehow(sizes, capacity)
    assert fits(sizes, capacity) == expected
    assert (not short_bytes(sizes, capacity).any()) == expected


@pytest.mark.parametrize("seed", range(60))
def test_what_is_short_is_enough_and_no_more_than_one_stage_needs(seed: int) -> None:
    """With the missing bytes the layers fit, and with one byte less on the stage that lacks the most they do not."""
    sizes, capacity = random_layers(seed)
    short = short_bytes(sizes, capacity)
    if np.isinf(short.sum()):
        ample = np.full(len(capacity), 1e6)
        assert not fits_somehow(sizes, ample)
        return
    assert fits_somehow(sizes, capacity + short)
    if (short > 0).sum() == 1:
        assert not fits_somehow(sizes, capacity + short - (short > 0))
