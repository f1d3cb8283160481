"""Products with weights that are expanded on the way."""

import pytest
import torch

from quantizer.gemm import expanding_linear, linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [0, 1, 9])
def test_linear_is_the_product(num_rows: int, dtype: torch.dtype) -> None:
    """The product equals x @ weight.T + bias, also of no rows and of a strided input."""
    wide, weight, bias = torch.randn(num_rows, 64).to(dtype), torch.randn(7, 32).to(dtype), torch.randn(7).to(dtype)
    x = wide[:, ::2]
    expected = x.double() @ weight.double().T + bias.double()
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    assert linear(x, weight, bias).dtype == dtype
    assert torch.allclose(linear(x, weight, bias).double(), expected, atol=tolerance)
    assert torch.allclose(linear(x, weight, None).double(), expected - bias.double(), atol=tolerance)


@pytest.mark.parametrize("block_elements", [1, 32 * 10, 2**18])
@pytest.mark.parametrize("has_bias", [True, False])
def test_no_more_than_a_block_is_expanded(
    *, block_elements: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result does not depend on the block size, and at no time is more than a block (or one row) asked for."""
    monkeypatch.setattr("quantizer.blocks.BLOCK_ELEMENTS", block_elements)
    x, weight = torch.randn(3, 32), torch.randn(45, 32)
    bias = torch.randn(45) if has_bias else None
    asked: list[int] = []

    def expand(rows: slice, dtype: torch.dtype) -> torch.Tensor:
        asked.append(rows.stop - rows.start)
        return weight[rows].to(dtype)

    assert torch.allclose(expanding_linear(x, 45, expand, bias), linear(x, weight, bias), atol=1e-5)
    assert sum(asked) == 45
    assert max(asked) == min(45, max(1, block_elements // 32))
