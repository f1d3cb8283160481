"""Error-compensating rounding: GPTQ (arXiv 2210.17323).

The loss of a row w rounded to q is (q - w)^T H (q - w) with H = E[x x^T] of the inputs: the mean squared error of its
output. Columns are rounded one after another, those with the largest inputs first; after each, the columns still to
come move so as to make up for its error as well as they can. With H^-1 = U^T U and U upper triangular, an error e_j of
column j moves column k > j by -e_j U_jk / U_jj, and adds (e_j / U_jj)^2 to the loss that is left when all make up for
each other. Grids stay what they were before any column moved (static groups), so that order is free.
"""

from dataclasses import dataclass

import torch

from quantizer.grid import Grid

#: Share of the mean diagonal that is added to the diagonal of H: inputs that calibration met little of matter too.
DAMPING = 0.01
#: Columns whose corrections are applied to the rest of the matrix in one product.
BLOCK_COLUMNS = 128


@dataclass(frozen=True)
class Compensation:
    """In which order columns are rounded, and how the later ones make up for the errors of the earlier.

    Attributes:
        order: int64 (in,), columns in the order of rounding.
        factor: float32 (in, in), U of the columns in that order.
    """

    order: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def of(cls, hessian: torch.Tensor) -> "Compensation":
        """For a positive definite H, float32 (in, in)."""
        order = hessian.diagonal().argsort(descending=True, stable=True)
        return cls(order, _inverse_factor(hessian[order][:, order]))

    @property
    def column_weights(self) -> torch.Tensor:
        """What a squared error of each column costs when later columns make up for it, 1 / U_jj^2, float32 (in,)."""
        weights = torch.empty_like(self.factor[0])
        weights[self.order] = self.factor.diagonal().square().reciprocal()
        return weights


def damped(moments: torch.Tensor) -> torch.Tensor:
    """H, scaled to a mean diagonal of 1 and with `DAMPING` added to that, which makes it positive definite."""
    mean = moments.diagonal().mean()
    hessian = moments / torch.where(mean > 0, mean, 1.0)
    hessian.diagonal().add_(DAMPING)
    return hessian


def compensated_codes(weight: torch.Tensor, grid: Grid, compensation: Compensation) -> torch.Tensor:
    """Codes on a grid, errors made up for.

    Args:
        weight: float32 (out, in).
        grid: What each weight may become.
        compensation: Of its inputs.

    Returns:
        float32 (out, in), whole.
    """
    order, factor = compensation.order, compensation.factor
    groups = order // grid.columns_per_group(len(order))
    columns = weight.T[order].contiguous()  # (in, out), so that a column lies in one piece
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
    """U, upper triangular with U^T U = H^-1.

    H = V V^T with V upper triangular is the Cholesky decomposition from the last column to the first, and U = V^-1. So
    H^-1, which would square the condition number, is never formed.
    """
    upper = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    factor: torch.Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
    return factor
