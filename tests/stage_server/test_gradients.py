"""The tokens that gradients are taken for."""

import torch

from stage_server.gradients import drawn_columns


def test_columns_are_drawn_by_their_probabilities() -> None:
    """Each column comes as often as its probability says, within five standard deviations; an impossible one never."""
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    num_draws = 20_000
    drawn = drawn_columns(probabilities.repeat(num_draws, 1), torch.Generator().manual_seed(1))
    frequencies = torch.bincount(drawn[:, 0], minlength=4) / num_draws
    assert drawn.shape == (num_draws, 1)
    assert frequencies[1] == 0
    assert torch.all(
        (frequencies - probabilities).abs() <= 5 * (probabilities * (1 - probabilities) / num_draws).sqrt()
    )
