"""Rounding by the inputs that a linear meets."""

import pytest
import torch

from llmpq.plan import LayerPrecision, Rounding
from quantizer.gptq import Compensation, compensated_codes, damped
from quantizer.grid import clipped_grid
from quantizer.input_statistics import InputStatistics
from quantizer.methods import round_weight

OUT, IN = 24, 96


def correlated(num_rows: int = 400) -> torch.Tensor:
    """Inputs of which a few directions matter most, as those of a model's linears."""
    return torch.randn(num_rows, IN) @ (torch.randn(IN, IN) * torch.logspace(0, -2, IN)) + 0.05 * torch.randn(
        num_rows, IN
    )


@pytest.mark.parametrize("scheme", ["w8", "w4", "w3"])
@pytest.mark.parametrize("group_size", [0, 32, 64])
@pytest.mark.parametrize("is_symmetric", [False, True])
def test_outputs_are_nearer_than_of_the_nearest_weights(scheme: str, group_size: int, *, is_symmetric: bool) -> None:
    """On the very inputs that it is calibrated by, gptq leaves outputs less far off than rounding to the nearest."""
    weight, rows = torch.randn(OUT, IN), correlated()
    inputs = InputStatistics()
    inputs.update(rows)
    nearest, calibrated = (
        round_weight(weight, LayerPrecision(scheme, group_size), Rounding(method, is_symmetric), inputs).dequantized()
        for method in ("nearest", "gptq")
    )
    assert (rows @ (calibrated - weight).T).square().sum() < 0.8 * (rows @ (nearest - weight).T).square().sum()


def test_each_part_is_rounded_by_its_own_weights() -> None:
    """Stacked operators come out as each alone, by the tokens that matter to it."""
    weight, rows, weights = torch.randn(OUT, IN), correlated(), torch.rand(2, 400) ** 4
    together = InputStatistics((16, OUT - 16))
    together.update(rows, weights)
    precision, rounding = LayerPrecision("w4", 32), Rounding("gptq")
    got = round_weight(weight, precision, rounding, together).dequantized()
    for part, of_part, of_rows in zip(weight.split([16, OUT - 16]), got.split([16, OUT - 16]), weights, strict=True):
        alone = InputStatistics()
        alone.update(rows, of_rows[None])
        assert torch.equal(round_weight(part, precision, rounding, alone).dequantized(), of_part)


def test_compensation_is_that_of_the_definition() -> None:
    """Codes are those of rounding column by column, the rest solved anew by least squares after each."""
    weight, rows = torch.randn(5, 12).double(), correlated()[:, :12]
    hessian = damped(rows.T @ rows).double()
    grid = clipped_grid(weight.float(), 4, 4, torch.ones(12), is_symmetric=False)
    scales, zeros = (parts.double() for parts in grid.of_columns(12))
    order = hessian.diagonal().argsort(descending=True).tolist()
    wanted, codes = weight.clone(), torch.empty_like(weight)
    for at, column in enumerate(order):
        codes[:, column] = (wanted[:, column] / scales[:, column] + zeros[:, column]).round().clamp(0, 15)
        rest = order[at + 1 :]
        error = (codes[:, column] - zeros[:, column]) * scales[:, column] - wanted[:, column]
        if rest:  # what makes (e, d) H (e, d)^T least for the error e of this column
            wanted[:, rest] -= error[:, None] * torch.linalg.solve(hessian[rest][:, rest], hessian[rest, column])
    got = compensated_codes(weight.float(), grid, Compensation.of(hessian.float()))
    assert torch.equal(got.double(), codes)


def test_inputs_that_never_come_do_no_harm() -> None:
    """Without any input weights become the nearest; columns whose input is always 0 become something finite."""
    weight, precision = torch.randn(OUT, IN), LayerPrecision("w4", 32)
    never, partly = InputStatistics(), InputStatistics()
    never.update(torch.zeros(3, IN))
    partly.update(correlated() * (torch.arange(IN) % 3 > 0))
    nearest = round_weight(weight, precision).dequantized()
    assert torch.equal(round_weight(weight, precision, Rounding("gptq"), never).dequantized(), nearest)
    assert round_weight(weight, precision, Rounding("gptq"), partly).dequantized().isfinite().all()
