"""Drawing tokens.

A draw depends on the logits, its parameters and the token's position, and on nothing else: there is no state to lose
when a process restarts. Logits may differ in their last bits between prefill and decode, or between micro-batch sizes,
so a draw that falls within rounding of a boundary between two tokens may rarely come out as the other one.
"""

from collections.abc import Sequence

import torch

from llmpq.frames import Sampling
from stage_server.ends import Head

_MASK = 2**64 - 1


def next_tokens(
    head: Head, hidden: torch.Tensor, sampling: Sequence[Sampling], positions: Sequence[int]
) -> torch.Tensor:
    """One token a row: the most likely one where the temperature is 0, else a draw.

    Args:
        head: Of the model.
        hidden: (rows, hidden).
        sampling: How to draw, one entry a row.
        positions: Position of the token that each row is to bring forth.

    Returns:
        (rows,) int32 token ids.
    """
    greedy = [row for row, how in enumerate(sampling) if how.temperature == 0]
    drawn = [row for row, how in enumerate(sampling) if how.temperature != 0]
    tokens = torch.empty(len(hidden), dtype=torch.int32, device=hidden.device)
    if greedy:
        tokens[greedy] = head.most_likely(hidden[greedy]).to(torch.int32)
    if drawn:
        draws = draw(head.logits(hidden[drawn]), [sampling[row] for row in drawn], [positions[row] for row in drawn])
        tokens[drawn] = draws.to(torch.int32)
    return tokens


def draw(logits: torch.Tensor, sampling: Sequence[Sampling], positions: Sequence[int]) -> torch.Tensor:
    """Inverse-transform sampling over the most likely tokens that top-k and top-p keep.

    Args:
        logits: (rows, vocabulary) float32.
        sampling: How to draw, one entry a row, with temperatures above 0.
        positions: Position of the token that each row is to bring forth.

    Returns:
        (rows,) int64 token ids.
    """
    device = logits.device
    temperature = torch.tensor([how.temperature for how in sampling], device=device, dtype=torch.float64)
    top_k = torch.tensor([how.top_k or logits.shape[-1] for how in sampling], device=device)
    top_p = torch.tensor([how.top_p or 1.0 for how in sampling], device=device, dtype=torch.float64)
    uniform = torch.tensor(
        [uniform_of(how.seed, position) for how, position in zip(sampling, positions, strict=True)],
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
