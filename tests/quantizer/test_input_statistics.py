"""Second moments of a linear's inputs."""

import pytest
import torch

from llmpq.errors import InvalidInputError
from quantizer.input_statistics import InputStatistics


def _statistics(*batches: torch.Tensor) -> InputStatistics:
    inputs = InputStatistics()
    for batch in batches:
        inputs.update(batch)
    return inputs


def test_moments_are_over_all_batches() -> None:
    """Batch by batch, empty ones among them, gives the second moments of all rows at once."""
    rows = torch.randn(100, 16)
    expected = (rows.double().T @ rows.double() / 100).float()
    inputs = _statistics(*rows.split([0, 1, 50, 0, 7, 42]))
    assert inputs.num_rows == 100
    assert torch.allclose(inputs.second_moments, expected[None], rtol=1e-5, atol=1e-6)


def test_rows_count_by_their_weights() -> None:
    """A row of weight n is n rows, in each part by the weight that it has there; parts without any weight have none."""
    rows, weights = torch.randn(6, 4), torch.tensor([[3, 0, 1, 2, 0, 1], [0, 0, 5, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    inputs = InputStatistics((2, 1, 1))
    for batch in (slice(0, 2), slice(2, 6)):
        inputs.update(rows[batch], weights[:, batch].float())
    repeated = [_statistics(rows.repeat_interleave(times, dim=0)).second_moments for times in weights[:2]]
    assert torch.allclose(inputs.second_moments, torch.cat([*repeated, torch.zeros(1, 4, 4)]), atol=1e-6)


def test_sixteen_bit_inputs_are_summed_in_float32() -> None:
    """Squares of fp16 inputs that fp16 cannot hold are no matter."""
    assert _statistics(torch.full((3, 2), 1000.0, dtype=torch.float16)).second_moments.tolist() == [[[1e6, 1e6]] * 2]


@pytest.mark.parametrize(
    ("batches", "reason"),
    [((), "NO_CALIBRATION_DATA"), ((torch.tensor([[1.0, float("nan")]]),), "BAD_CALIBRATION_DATA")],
    ids=["none", "nan"],
)
def test_moments_of_nothing_or_of_nan_are_refused(batches: tuple[torch.Tensor, ...], reason: str) -> None:
    """Without a row, or with one that is not finite, there are no moments, and the error says which it is."""
    with pytest.raises(InvalidInputError) as refused:
        _ = _statistics(*batches).second_moments
    assert refused.value.reason == reason
