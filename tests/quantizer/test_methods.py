"""One way into every method of rounding."""

import pytest
import torch

from llmpq.errors import InvalidInputError
from llmpq.plan import LayerPrecision, Rounding
from quantizer.hqq import NORM
from quantizer.input_statistics import InputStatistics
from quantizer.methods import round_weight
from quantizer.rounded import GroupRounded, RowRounded, SixteenBits


def _inputs(num_features: int) -> InputStatistics:
    inputs = InputStatistics()
    inputs.update(torch.randn(3 * num_features, num_features) @ torch.randn(num_features, num_features))
    return inputs


@pytest.mark.parametrize("method", ["nearest", "hqq", "gptq"])
@pytest.mark.parametrize(
    ("scheme", "kind"),
    [("w16", SixteenBits), ("w8", RowRounded), ("w8a8", RowRounded), ("w4", GroupRounded), ("w3", GroupRounded)],
)
def test_every_method_ends_in_the_schemes_record(method: str, scheme: str, kind: type) -> None:
    """What a method makes is stored as the scheme says, within the reach of its codes."""
    rounded = round_weight(torch.randn(24, 96), LayerPrecision(scheme, 64), Rounding(method), _inputs(96))
    assert isinstance(rounded, kind)
    assert rounded.shape == (24, 96)
    if isinstance(rounded, GroupRounded):
        assert (rounded.bits, rounded.group_size) == (int(scheme[1]), 64)
        assert rounded.codes.max() < 2**rounded.bits


@pytest.mark.parametrize("method", ["nearest", "hqq", "gptq"])
@pytest.mark.parametrize("scheme", ["w4", "w3"])
def test_symmetric_zero_points_are_the_middle_code(method: str, scheme: str) -> None:
    """A symmetric grid has its zero point in the middle, whatever the method."""
    rounding = Rounding(method, is_symmetric=True)
    rounded = round_weight(torch.randn(24, 96) + 0.3, LayerPrecision(scheme, 32), rounding, _inputs(96))
    assert isinstance(rounded, GroupRounded)
    assert (rounded.zeros == 2 ** (rounded.bits - 1)).all()


@pytest.mark.parametrize("scheme", ["w4", "w3"])
def test_half_quadratic_rounding_lowers_both_norms(scheme: str) -> None:
    """Beside nearest, hqq raises its own norm of the errors of no group, and lowers squared errors on the whole."""
    weight, precision = torch.randn(64, 256), LayerPrecision(scheme, 64)
    nearest, hqq = (round_weight(weight, precision, Rounding(m)).dequantized() - weight for m in ("nearest", "hqq"))
    norms = [error.abs().pow(NORM).unflatten(1, (-1, 64)).sum(dim=2) for error in (nearest, hqq)]
    assert (norms[1] <= norms[0] * 1.00001).all()
    assert hqq.square().sum() < nearest.square().sum()


@pytest.mark.parametrize("scheme", ["w8", "w8a8", "w4", "w3"])
def test_calibrated_rounding_needs_inputs(scheme: str) -> None:
    """Gptq without inputs, or with those of another layer, is refused; w16 does not need any."""
    weight, rounding = torch.randn(8, 96), Rounding("gptq")
    with pytest.raises(InvalidInputError, match="send samples") as refused:
        round_weight(weight, LayerPrecision(scheme, 64), rounding)
    assert refused.value.reason == "NO_CALIBRATION_DATA"
    with pytest.raises(InvalidInputError, match=r"\(8, 96\) .* 95 inputs"):
        round_weight(weight, LayerPrecision(scheme, 64), rounding, _inputs(95))
    round_weight(weight, LayerPrecision("w16", 64), rounding)


def test_unknown_methods_are_refused_with_what_exists() -> None:
    """An unknown method is refused by a message that lists those there are."""
    with pytest.raises(InvalidInputError, match="nearest, hqq, gptq"):
        round_weight(torch.randn(2, 2), LayerPrecision("w4", 64), Rounding("awq"))
