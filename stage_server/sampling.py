"""Drawing tokens.

A draw depends on the logits, its parameters and the token's position, and on nothing else: there is no state to lose
when a process restarts. Logits may differ in their last bits between prefill and decode, or between micro-batch sizes,
so a draw that falls within rounding of a boundary between two tokens may rarely come out as the other one.
"""

from collections.abc import Sequence

import torch

from llmpq.frames import Sampling

_MASK = 2**64 - 1


def sample(logits: torch.Tensor, sampling: Sequence[Sampling], positions: Sequence[int]) -> torch.Tensor:
    """Draws one token a row.

    Args:
        logits: (rows, vocabulary) float32.
        sampling: How to draw, one entry a row; empty means all greedy.
        positions: Position of the token that each row is to bring forth.

    Returns:
        (rows,) int32 token ids.
    """
    tokens = logits.argmax(dim=-1)
    drawn = [row for row, draw in enumerate(sampling) if draw.temperature > 0]
    if drawn:
        tokens[drawn] = _draw(logits[drawn], [sampling[row] for row in drawn], [positions[row] for row in drawn])
    return tokens.to(torch.int32)


def _draw(logits: torch.Tensor, sampling: Sequence[Sampling], positions: Sequence[int]) -> torch.Tensor:
    """Inverse-transform sampling over the most likely tokens that top-k and top-p keep."""
    device = logits.device
    temperature = torch.tensor([draw.temperature for draw in sampling], device=device, dtype=torch.float64)
    top_k = torch.tensor([draw.top_k or logits.shape[-1] for draw in sampling], device=device)
    top_p = torch.tensor([draw.top_p or 1.0 for draw in sampling], device=device, dtype=torch.float64)
    uniform = torch.tensor(
        [uniform_of(draw.seed, position) for draw, position in zip(sampling, positions, strict=True)],
        device=device,
        dtype=torch.float64,
    )
    ranked, token_ids = logits.sort(dim=-1, descending=True, stable=True)
    in_top_k = torch.arange(logits.shape[-1], device=device) < top_k[:, None]
    # Below the maximum and in double precision, so that no temperature, however low, makes an infinity of the maximum.
    scaled = ((ranked - ranked[:, :1]).double() / temperature[:, None]).masked_fill(~in_top_k, -torch.inf)
    probabilities = torch.softmax(scaled, dim=-1)
    # A token is kept if the ones before it do not yet reach top_p; the first always is.
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities.masked_fill(before >= top_p[:, None], 0.0)
    cumulative = kept.cumsum(dim=-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    rank = torch.searchsorted(cumulative, threshold, right=True)
    last_kept = (kept > 0).sum(dim=-1, keepdim=True) - 1
    return token_ids.gather(1, torch.minimum(rank, last_kept))[:, 0]


def uniform_of(seed: int, position: int) -> float:
    """A number in [0, 1) that looks random and is a function of its arguments (SplitMix64's finalizer, twice)."""
    mixed = _mix((_mix(seed & _MASK) + position * 0x9E3779B97F4A7C15) & _MASK)
    return (mixed >> 11) / 2**53


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
