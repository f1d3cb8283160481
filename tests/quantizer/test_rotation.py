"""Rotated inputs: the same product, and less lost where a few of them are large."""

import pytest
import torch
from integer_products import rotated

from llmpq.plan import LayerPrecision, Rounding
from quantizer.formats.compressed_tensors import to_tensors
from quantizer.input_statistics import InputStatistics
from quantizer.linear import build_linear
from quantizer.methods import round_weight
from quantizer.rotated_linear import RotatedLinear
from quantizer.rotation import rotate
from quantizer.rounded import RowRounded, select_rows, stack
from quantizer.rounding import round_rows

W8A8 = LayerPrecision("w8a8", 0)


def with_outliers(num_rows: int, num_columns: int) -> torch.Tensor:
    """Numbers of which one in a group of 64 is 30 times as large as the others."""
    matrix = torch.randn(num_rows, num_columns)
    matrix[:, 3::64] *= 30
    return matrix


def error(x: torch.Tensor, weight: torch.Tensor, rounding: Rounding, inputs: InputStatistics | None = None) -> float:
    """Of the outputs of a w8a8 linear, relative to those of the weight as it is."""
    linear = build_linear(round_weight(weight, W8A8, rounding, inputs), None, "w8a8", compute_dtype=torch.float32)
    exact = x @ weight.T
    return ((linear.forward(x) - exact).norm() / exact.norm()).item()


def test_groups_are_multiplied_by_the_hadamard_matrix() -> None:
    """Every 64 columns, times +-1/8."""
    matrix = torch.randn(7, 192)
    assert torch.allclose(rotate(matrix), rotated(matrix), atol=1e-5)


def test_rotating_twice_changes_nothing() -> None:
    """The matrix is its own inverse; whole numbers come back exactly."""
    matrix = torch.randint(-99, 100, (5, 128)).float()
    assert torch.equal(rotate(rotate(matrix)), matrix)


@pytest.mark.parametrize("num_rows", [0, 1])
def test_there_may_be_no_rows(num_rows: int) -> None:
    """Neither to rotate nor to multiply."""
    assert rotate(torch.randn(num_rows, 128)).shape == (num_rows, 128)
    linear = RotatedLinear(build_linear(round_rows(torch.randn(8, 128)), None, "w8", compute_dtype=torch.float32))
    assert linear.forward(torch.randn(num_rows, 128)).shape == (num_rows, 8)


def test_any_layout_is_rotated_alike() -> None:
    """A transposed matrix as its contiguous copy."""
    matrix = torch.randn(64, 7).T
    assert torch.equal(rotate(matrix), rotate(matrix.contiguous()))


def test_what_is_given_is_left_as_it_is() -> None:
    """The result is new also where the type stays."""
    matrix = torch.randn(3, 64)
    before = matrix.clone()
    rotate(matrix)
    assert torch.equal(matrix, before)


def test_the_weight_that_is_stood_for_is_not_rotated() -> None:
    """Whoever dequantizes a weight, or a linear of it, sees its columns as they belong to the inputs."""
    weight = torch.randn(48, 128)
    rounded = round_weight(weight, W8A8)
    linear = build_linear(rounded, None, "w8a8", compute_dtype=torch.float32)
    for stood_for in (rounded.dequantized(), linear.dequantized()):
        assert (stood_for - weight).abs().max() < weight.abs().max() / 127


@pytest.mark.parametrize("method", ["nearest", "gptq"])
def test_outliers_cost_less_with_rotation(method: str) -> None:
    """Less than half of the error is left where one activation in 64 is large."""
    x, weight = with_outliers(256, 192), torch.randn(96, 192)
    inputs = InputStatistics()
    inputs.update(x)
    plain, with_rotation = (error(x, weight, Rounding(method, is_unrotated=choice), inputs) for choice in (True, False))
    assert with_rotation < plain / 2


def test_calibration_sees_the_rotated_inputs() -> None:
    """Compensated rounding of rotated weights beats rounding them to the nearest on the inputs it was made for."""
    mixing, weight = torch.randn(128, 128) * torch.logspace(-2, 0, 128), torch.randn(64, 128)
    x = torch.randn(512, 128) @ mixing
    inputs = InputStatistics()
    inputs.update(x)
    exact, rounded = x @ weight.T, {}
    for method in ("nearest", "gptq"):
        of_method = round_weight(weight, W8A8, Rounding(method), inputs)
        rounded[method] = (x @ of_method.dequantized().T - exact).norm()
    assert rounded["gptq"] < 0.8 * rounded["nearest"]


@pytest.mark.parametrize(
    ("scheme", "num_inputs", "rounding"),
    [("w8", 64, Rounding()), ("w8a8", 96, Rounding()), ("w8a8", 64, Rounding(is_unrotated=True))],
)
def test_other_weights_are_rounded_as_they_are(scheme: str, num_inputs: int, rounding: Rounding) -> None:
    """Nothing is rotated for float activations, where groups are not whole, or where it is not wanted."""
    rounded = round_weight(torch.randn(8, num_inputs), LayerPrecision(scheme, 0), rounding)
    assert isinstance(rounded, RowRounded)
    assert not rounded.is_rotated


def test_a_rotated_weight_is_in_no_checkpoint() -> None:
    """Whoever reads one would multiply it with inputs as they are."""
    with pytest.raises(TypeError, match="rotated"):
        to_tensors(round_weight(torch.randn(8, 64), W8A8), None)


def test_rows_of_a_rotated_weight_stay_rotated() -> None:
    """Also where they are selected and stacked; with others they cannot be."""
    rounded = round_weight(torch.randn(8, 64), W8A8)
    halves = [select_rows(rounded, slice(0, 4)), select_rows(rounded, slice(4, 8))]
    assert torch.equal(stack(halves).dequantized(), rounded.dequantized())
    with pytest.raises(TypeError, match="rotated"):
        stack([halves[0], round_weight(torch.randn(8, 64), LayerPrecision("w8", 0))])
