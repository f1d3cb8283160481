"""Error-compensating rounding: GPTQ (arXiv 2210.17323).

The loss of a row w rounded to q is (q - w)^T H (q - w), with H = E[x x^T] of the inputs: the mean squared error of its
output. Columns are rounded one after another; after each, the columns still to come move so as to make up for its error
as well as they can. With H^-1 = U^T U and U upper triangular (Cholesky), rounding column j with error e_j moves column
k > j by -e_j U[j, k] / U[j, j].
"""

import torch

from quantizer.grid import Grid

#: Share of the mean diagonal that is added to the diagonal of H, so that it can be inverted.
DAMPING = 0.01
#: Columns whose corrections are applied to the rest of the matrix in one product.
BLOCK_COLUMNS = 128


def damped(moments: torch.Tensor) -> torch.Tensor:
    """H with a share of its mean diagonal added to the diagonal, so that inputs which are always 0 do no harm."""
    hessian = moments.clone()
    mean = hessian.diagonal().mean()
    hessian.diagonal().add_(torch.where(mean > 0, DAMPING * mean, 1.0))
    return hessian


def compensated_codes(weight: torch.Tensor, grid: Grid, hessian: torch.Tensor) -> torch.Tensor:
    """Codes on a fixed grid, columns with the largest inputs first (act-order, static groups).

    Args:
        weight: float32 (out, in).
        grid: What each weight may become.
        hessian: float32 (in, in), positive definite.

    Returns:
        float32 (out, in), whole.
    """
    order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = _inverse_factor(hessian[order][:, order])
    groups = order // (grid.group_size or len(order))
    columns = weight.T[order].contiguous()  # (in, out): a column of the weight is contiguous
    scales, zeros = grid.scales.T.contiguous(), grid.zeros.T.contiguous()
    codes = torch.empty_like(columns)
    for first in range(0, len(order), BLOCK_COLUMNS):
        block = slice(first, first + BLOCK_COLUMNS)
        lattice = scales[groups[block]], zeros[groups[block]]
        codes[block], errors = _round_block(columns[block], *lattice, factor[block, block], (grid.lowest, grid.highest))
        columns[block.stop :].addmm_(factor[block, block.stop :].T, errors, alpha=-1)
    restored = torch.empty_like(codes)
    restored[order] = codes
    return restored.T.contiguous()


def _round_block(
    columns: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, factor: torch.Tensor, limits: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds the columns of one block in turn, each making up for the ones before.

    Args:
        columns: (columns, out), changed.
        scales: (columns, out).
        zeros: (columns, out).
        factor: (columns, columns), the block of U.
        limits: The least and the greatest code.

    Returns:
        Codes, and errors divided by the diagonal of U, both (columns, out).
    """
    codes, errors = torch.empty_like(columns), torch.empty_like(columns)
    diagonal = factor.diagonal().tolist()
    for at, (scale, zero) in enumerate(zip(scales, zeros, strict=True)):
        code = torch.clamp((columns[at] / scale).add_(zero).round_(), *limits, out=codes[at])
        torch.sub(columns[at], (code - zero).mul_(scale), out=errors[at]).div_(diagonal[at])
        columns[at + 1 :].addr_(factor[at, at + 1 :], errors[at], alpha=-1)
    return codes, errors


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """U, upper triangular with U^T U = H^-1."""
    factor: torch.Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    return factor
