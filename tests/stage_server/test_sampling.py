"""Draws follow the distribution, keep to top-k and top-p, and depend on nothing but their arguments."""

import torch

from llmpq.frames import Sampling
from stage_server.sampling import sample, uniform_of


def test_greedy_takes_the_lowest_of_equal_maxima() -> None:
    """Without a temperature the most likely token is taken, the lowest id among equals."""
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [5.0, 1.0, 2.0, 0.0]])

    assert sample(logits, [], [4, 9]).tolist() == [1, 0]
    assert sample(logits, [Sampling(), Sampling()], [4, 9]).tolist() == [1, 0]


def test_draw_depends_on_seed_and_position_only() -> None:
    """A row draws the same token alone, among others, and in another order."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, 50, generator=generator)
    sampling = [Sampling(temperature=1.3, seed=seed) for seed in (1, 2, 3, 4, 2**64 - 1)]
    positions = [7, 8, 9, 10, 11]

    together = sample(logits, sampling, positions).tolist()
    alone = [int(sample(logits[i : i + 1], sampling[i : i + 1], positions[i : i + 1])) for i in range(5)]
    mixed = sample(logits.flip(0), sampling[::-1], positions[::-1]).flip(0).tolist()

    assert together == alone == mixed


def test_draws_follow_the_softmax() -> None:
    """Over many positions the frequencies approach the probabilities."""
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    count = 20_000
    logits = probabilities.log().expand(count, -1)

    tokens = sample(logits, [Sampling(temperature=1.0, seed=42)] * count, range(count))

    frequencies = torch.bincount(tokens, minlength=4) / count
    torch.testing.assert_close(frequencies, probabilities, atol=0.015, rtol=0)


def test_top_k_and_top_p_bound_the_choice() -> None:
    """Only the k most likely tokens, and only those needed to reach p, are ever drawn."""
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(500, -1)
    positions = range(500)

    top_2 = sample(logits, [Sampling(temperature=1.0, top_k=2, seed=1)] * 500, positions)
    top_p = sample(logits, [Sampling(temperature=1.0, top_p=0.6, seed=1)] * 500, positions)
    first = sample(logits, [Sampling(temperature=1.0, top_p=1e-6, seed=1)] * 500, positions)

    assert set(top_2.tolist()) == {0, 1}
    assert set(top_p.tolist()) == {0, 1}
    assert set(first.tolist()) == {0}


def test_low_temperature_approaches_greedy() -> None:
    """A temperature near zero draws the most likely token without overflowing."""
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(5)) * 20

    for temperature in (1e-6, 1e-39, 5e-324):
        drawn = sample(logits, [Sampling(temperature=temperature, seed=9)] * 64, range(64))
        assert torch.equal(drawn, logits.argmax(-1).to(torch.int32))


def test_uniform_numbers_are_spread_evenly() -> None:
    """The draws of neighbouring seeds and positions fill [0, 1) evenly."""
    numbers = torch.tensor([uniform_of(seed, position) for seed in range(100) for position in range(100)])

    assert numbers.min() >= 0
    assert numbers.max() < 1
    deciles = torch.histc(numbers, bins=10, min=0, max=1) / len(numbers)
    torch.testing.assert_close(deciles, torch.full((10,), 0.1), atol=0.012, rtol=0)
