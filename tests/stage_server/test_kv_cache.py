"""A cache in int8 gives back what was written, to half a step of each head, and changes little in what a model says."""

import pytest
import torch
from parity_models import SaveModel
from slices import Pipeline

from stage_server.kv_cache import KvCache
from stage_server.layout import BatchLayout

CPU = torch.device("cpu")
PROMPTS = ([5, 9, 60, 3, 17, 44, 8, 2, 30, 71, 12, 9], [7, 1, 33], [90, 4])
NEXT = ([6], [40], [21])


@pytest.mark.parametrize("counts", [(5, 1, 3), (1, 1, 1)], ids=["prefill", "decode"])
def test_int8_numbers_are_within_half_a_step(counts: tuple[int, ...]) -> None:
    """A step is a 127th of the largest number of the token's head; zeros stay zeros."""
    cache = KvCache(
        num_layers=2,
        num_slots=4,
        num_kv_heads=2,
        max_tokens=9,
        head_dim=8,
        dtype=torch.float32,
        device=CPU,
        is_int8=True,
    )
    layout = BatchLayout((3, 0, 2), (0, 4, 2), counts, CPU)
    torch.manual_seed(1)
    written = tuple(torch.randn(layout.num_rows, 2, 8) * torch.logspace(-3, 3, 2)[:, None] for _ in range(2))
    written[0][-1] = 0

    cache.layers[1].write(layout, *written)

    row = 0
    for slot, start, count in zip(layout.slots, layout.starts, counts, strict=True):
        read = cache.layers[1].read(slice(slot, slot + 1), slice(start, start + count))
        for ours, theirs in zip(read, written, strict=True):
            expected = theirs[row : row + count].transpose(0, 1)
            half_step = expected.abs().amax(-1, keepdim=True) / 127 / 2
            assert ((ours[0] - expected).abs() <= half_step * 1.001).all()
        row += count


@pytest.mark.parametrize("name", ["llama-gqa-untied", "opt", "bloom", "gemma2"])
def test_logits_hardly_change(save_model: SaveModel, name: str) -> None:
    """Prompts, and a decode step behind them, by native kernels or by torch, whichever serves the family."""
    directory, _ = save_model(name)
    exact, rounded = (Pipeline(directory, (1,), has_int8_kv_cache=is_int8) for is_int8 in (False, True))
    for tokens, starts in ((PROMPTS, (0, 0, 0)), (NEXT, tuple(map(len, PROMPTS)))):
        for expected, ours in zip(
            exact.logits(tokens, (0, 2, 5), starts), rounded.logits(tokens, (0, 2, 5), starts), strict=True
        ):
            assert not torch.equal(ours, expected)
            assert ((ours - expected).norm() / expected.norm()) < 0.02
