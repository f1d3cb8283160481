"""Draws follow the distribution, keep to top-k and top-p, and depend on nothing but their arguments."""

import torch

from llmpq.frames import Sampling
from quantizer.linear import build_linear
from quantizer.rounded import SixteenBits
from stage_server.ends import Head
from stage_server.sampling import draw, next_tokens, uniform_of


def test_greedy_takes_the_lowest_of_equal_maxima_beside_draws() -> None:
    """Without a temperature the most likely token is taken, the lowest id among equals; others are drawn."""
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [5.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    vocabulary = build_linear(SixteenBits(logits.T.half().contiguous()), None, "w16", compute_dtype=torch.float32)
    head = Head(vocabulary, is_shared=False)
    drawn = Sampling(temperature=1.0, seed=4)

    assert next_tokens(head, torch.eye(3), [Sampling()] * 3, [4, 9, 5]).tolist() == [1, 0, 0]
    mixed = next_tokens(head, torch.eye(3), [Sampling(), drawn, Sampling()], [4, 9, 5])
    assert mixed.tolist() == [1, int(draw(logits[1:2], [drawn], [9])), 0]


def test_draw_depends_on_seed_and_position_only() -> None:
    """A row draws the same token alone, among others, and in another order."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, 50, generator=generator)
    sampling = [Sampling(temperature=1.3, seed=seed) for seed in (1, 2, 3, 4, 2**64 - 1)]
    positions = [7, 8, 9, 10, 11]

    together = draw(logits, sampling, positions).tolist()
    alone = [int(draw(logits[i : i + 1], sampling[i : i + 1], positions[i : i + 1])) for i in range(5)]
    mixed = draw(logits.flip(0), sampling[::-1], positions[::-1]).flip(0).tolist()

    assert together == alone == mixed


def test_draws_follow_the_softmax() -> None:
    """Over many positions the frequencies approach the probabilities."""
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    count = 20_000
    logits = probabilities.log().expand(count, -1)

    tokens = draw(logits, [Sampling(temperature=1.0, seed=42)] * count, range(count))

    frequencies = torch.bincount(tokens, minlength=4) / count
    torch.testing.assert_close(frequencies, probabilities, atol=0.015, rtol=0)


def test_top_k_and_top_p_bound_the_choice() -> None:
    """Only the k most likely tokens, and only those needed to reach p, are ever drawn."""
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(500, -1)
    positions = range(500)

    top_2 = draw(logits, [Sampling(temperature=1.0, top_k=2, seed=1)] * 500, positions)
    top_p = draw(logits, [Sampling(temperature=1.0, top_p=0.6, seed=1)] * 500, positions)
    first = draw(logits, [Sampling(temperature=1.0, top_p=1e-6, seed=1)] * 500, positions)

    assert set(top_2.tolist()) == {0, 1}
    assert set(top_p.tolist()) == {0, 1}
    assert set(first.tolist()) == {0}


def test_low_temperature_approaches_greedy() -> None:
    """A temperature near zero draws the most likely token without overflowing."""
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(5)) * 20

    for temperature in (1e-6, 1e-39, 5e-324):
        drawn = draw(logits, [Sampling(temperature=temperature, seed=9)] * 64, range(64))
        assert torch.equal(drawn, logits.argmax(-1).to(torch.int32))


def test_uniform_numbers_are_spread_evenly() -> None:
    """The draws of neighbouring seeds and positions fill [0, 1) evenly."""
    numbers = torch.tensor([uniform_of(seed, position) for seed in range(100) for position in range(100)])

    assert numbers.min() >= 0
    assert numbers.max() < 1
    deciles = torch.histc(numbers, bins=10, min=0, max=1) / len(numbers)
    torch.testing.assert_close(deciles, torch.full((10,), 0.1), atol=0.012, rtol=0)
