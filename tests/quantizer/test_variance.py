"""The variance indicator."""

import pytest
import torch
from integer_products import rotated

from llmpq.errors import InvalidInputError
from llmpq.plan import NEAREST, LayerPrecision, Rounding
from llmpq.schemes import SCHEMES
from quantizer.linear import build_linear
from quantizer.methods import round_weight
from quantizer.rounding import round_groups
from quantizer.variance import RatedLinear, RunningVariance, variance_omega


def _statistics(*batches: torch.Tensor) -> RunningVariance:
    inputs = RunningVariance()
    for batch in batches:
        inputs.update(batch)
    return inputs


def test_variance_is_over_all_batches() -> None:
    """Batch by batch gives the variance and step of all rows at once: no sample is forgotten, none counts twice."""
    rows = torch.randn(100, 16) * torch.linspace(0.1, 5, 100)[:, None] + torch.linspace(-3, 9, 100)[:, None]
    inputs = _statistics(*rows.split([1, 50, 7, 42]))
    assert inputs.variance == pytest.approx(rows.double().var(correction=0).item(), rel=1e-9)
    assert inputs.squared_int8_step == pytest.approx((rows.abs().amax(1) / 127).square().mean().item(), rel=1e-5)


def test_inputs_in_whole_groups_are_rotated_and_rounded_by_group() -> None:
    """As w8a8 rounds them; so one huge entry costs its own group alone, and that less."""
    rows = torch.randn(30, 128)
    rows[:, 5] = 60.0
    steps = rotated(rows).view(30, 2, 64).abs().amax(2) / 127
    assert _statistics(rows).squared_int8_step == pytest.approx(steps.square().mean().item(), rel=1e-5)


def test_order_of_samples_does_not_matter() -> None:
    """The first sample weighs as much as the last."""
    quiet, loud = torch.randn(8, 4), torch.randn(8, 4) * 100
    assert _statistics(quiet, loud).variance == pytest.approx(_statistics(loud, quiet).variance)
    assert _statistics(loud, quiet).variance > 100 * _statistics(quiet).variance


def test_variance_is_stable_far_from_zero() -> None:
    """A large common offset does not drown the variance, also when it comes in many batches."""
    rows = torch.randn(1000, 4, dtype=torch.float64) + 1e6
    assert _statistics(*rows.split(10)).variance == pytest.approx(rows.var(correction=0).item(), rel=1e-6)


def test_empty_batches_change_nothing() -> None:
    """Batches of no rows are taken without effect, and no rows at all are refused."""
    rows = torch.randn(5, 3)
    assert _statistics(torch.empty(0, 3), rows, torch.empty(0, 3)).variance == _statistics(rows).variance
    with pytest.raises(InvalidInputError, match="calibration"):
        _ = RunningVariance().variance


def test_omega_is_the_papers_formula() -> None:
    """Omega of a weight-only scheme is D_W * S_W^2 * Var[X] / 4, summed over operators."""
    first, second = torch.randn(8, 128), torch.randn(16, 64) * 3
    inputs = _statistics(torch.randn(40, 7) * 2)
    expected = sum(
        weight.shape[1] * round_groups(weight, 4, 32).scales.double().square().mean().item() * inputs.variance / 4
        for weight in (first, second)
    )
    linears = [RatedLinear(first, inputs), RatedLinear(second, inputs)]
    assert variance_omega(linears, LayerPrecision("w4", 32), NEAREST) == pytest.approx(expected)


@pytest.mark.parametrize("scheme", ["w8", "w8a8", "w4", "w3"])
def test_omega_bounds_the_error_it_stands_for(scheme: str) -> None:
    """The measured variance that rounding adds to outputs lies below omega, by about the 3 between bound and mean."""
    weight, x = torch.randn(256, 512), torch.randn(400, 512)
    precision = LayerPrecision(scheme, 64)
    linear = build_linear(round_weight(weight, precision), None, precision.scheme, compute_dtype=torch.float32)
    measured = (linear.forward(x) - x @ weight.T).square().mean().item()
    omega = variance_omega([RatedLinear(weight, _statistics(x))], precision, NEAREST)
    assert 2 * measured < omega < 4 * measured


def test_fewer_bits_rate_worse() -> None:
    """Omega grows from w16, which is the reference, over w8 and w8a8 and w4 to w3."""
    linear = RatedLinear(torch.randn(64, 256), _statistics(torch.randn(50, 256)))
    omegas = {scheme: variance_omega([linear], LayerPrecision(scheme, 64), NEAREST) for scheme in SCHEMES}
    assert omegas["w16"] == 0.0
    assert 0 < omegas["w8"] < omegas["w8a8"] < omegas["w4"] < omegas["w3"]


def test_peaks_in_the_inputs_count_against_int8_activations() -> None:
    """Tokens with a single huge entry make w8a8 worse relative to w8, as their int8 grid is coarse if not rotated."""
    even, peaked = torch.randn(50, 250), torch.randn(50, 250)
    peaked[:, 3] = 60.0
    weight = torch.randn(64, 250)
    ratios = []
    for inputs in (even, peaked):
        linear = RatedLinear(weight, _statistics(inputs))
        w8, w8a8 = (variance_omega([linear], LayerPrecision(scheme), NEAREST) for scheme in ("w8", "w8a8"))
        ratios.append(w8a8 / w8)
    assert ratios[1] > 5 * ratios[0]


def test_omega_is_of_the_grid_that_is_served() -> None:
    """Another rounding has another grid, and another omega; gptq has that of nearest, and needs no samples here."""
    linear = RatedLinear(torch.randn(16, 128), _statistics(torch.randn(40, 128)))
    precision = LayerPrecision("w3", 64)
    nearest, symmetric, hqq, gptq = (
        variance_omega([linear], precision, rounding)
        for rounding in (NEAREST, Rounding(is_symmetric=True), Rounding("hqq"), Rounding("gptq"))
    )
    assert len({nearest, symmetric, hqq}) == 3
    assert gptq == nearest
