"""Half-quadratic rounding, without data: HQQ (Badri and Shaji 2023, mobiusml.github.io/hqq_blog).

Least squares lets the few largest weights of a group decide its grid. Here the norm is l_p with p < 2, which forgives
a few large errors: minimize |w - (code - zero) * scale|_p over grids. The error gets a variable e of its own, tied to
the residual by a quadratic penalty, and three steps alternate: codes become the nearest; e becomes the residual shrunk
towards 0, the proximal step of the norm; the grid becomes the least-squares fit to w - e.

Unlike the original, which keeps the scale and stores fractional zero points, this fits both and stores whole zero
points: those are what formats on disk and integer kernels hold.
"""

import torch

from quantizer.rounding import encode, search_clipping, storable_scale

#: p of the norm. The original's 0.7 raises squared errors, by 5 % at 3 bits; at 1.4 these fall together with the norm
#: (docs/quantization.md).
NORM = 1.4
#: The penalty of the first step, for residuals in units of the scale, and its growth from step to step.
PENALTY, PENALTY_GROWTH = 10.0, 1.01
NUM_STEPS = 20


def fit_half_quadratic(groups: torch.Tensor, bits: int, *, is_symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The grid of each group that half-quadratic steps lead to; see `rounding.search_clipping` for arguments."""
    scale, zero = best_scale, best_zero = search_clipping(groups, bits, is_symmetric=is_symmetric)
    least_error = _norm(groups, scale, zero, bits)
    penalty = PENALTY
    for _ in range(NUM_STEPS):
        scale, zero = _refit(groups, (scale, zero), bits, penalty, is_symmetric=is_symmetric)
        error = _norm(groups, scale, zero, bits)
        is_better = error < least_error
        best_scale = torch.where(is_better, scale, best_scale)
        best_zero = torch.where(is_better, zero, best_zero)
        least_error = torch.minimum(error, least_error)
        penalty *= PENALTY_GROWTH
    return best_scale, best_zero


def _refit(
    groups: torch.Tensor,
    grid: tuple[torch.Tensor, torch.Tensor],
    bits: int,
    penalty: float,
    *,
    is_symmetric: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    scale, zero = grid
    codes = encode(groups, scale, zero, bits)
    residual = (groups / scale).sub_(codes - zero)
    target = groups - _shrink(residual, penalty).mul_(scale)
    if not is_symmetric:
        zero = (codes - target / scale).mean(dim=2, keepdim=True).round_().clamp_(0, 2**bits - 1)
    steps = codes - zero
    fitted = (steps * target).sum(dim=2, keepdim=True) / steps.square().sum(dim=2, keepdim=True)
    return storable_scale(torch.where(fitted > 0, fitted, scale)), zero


def _shrink(residual: torch.Tensor, penalty: float) -> torch.Tensor:
    """The generalized soft threshold, an approximate proximal step of |.|_p (HQQ, equation 4)."""
    magnitude = residual.abs()
    return residual.sign() * (magnitude - magnitude.clamp(min=1e-8).pow(NORM - 1) / penalty).clamp_(min=0)


def _norm(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    error = encode(groups, scale, zero, bits).sub_(zero).mul_(scale).sub_(groups)
    return error.abs_().pow_(NORM).sum(dim=2, keepdim=True)
