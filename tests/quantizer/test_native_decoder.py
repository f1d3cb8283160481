"""What the native kernels do between matrix products equals torch, for every instruction set that this CPU has."""

import ctypes
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional

from quantizer.native import build
from quantizer.native.decoder import AttentionKind, CachedHeads, DecoderKernels, RowNorm
from quantizer.native.library import Kernels, kernels, usable_instruction_sets

pytestmark = pytest.mark.skipif(kernels() is None, reason="the native library is not built on this host")

SIZES = (1, 8, 37, 64, 576)


@pytest.fixture(params=build.INSTRUCTION_SETS)
def native(request: pytest.FixtureRequest) -> DecoderKernels:
    """The operations of each instruction set."""
    if request.param not in usable_instruction_sets():
        pytest.skip(f"this CPU, or this process, has no {request.param}")
    return DecoderKernels(Kernels(ctypes.CDLL(str(build.library_path())), request.param))


@pytest.fixture(params=(1, 2))
def num_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread, and two."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("is_layer_norm", [False, True])
def test_norms_equal_torch(*, native: DecoderKernels, is_layer_norm: bool) -> None:
    """RMS and layer norms, with and without weights, of rows and of sums of rows, at any width."""
    for size in SIZES:
        x, added = torch.randn(19, size) * 3 + 1, torch.randn(19, size)
        for weight in (None, torch.randn(size)):
            bias = torch.randn(size) if is_layer_norm and weight is not None else None
            norm = RowNorm(weight, bias, 1e-5, is_layer_norm)
            total, of_sum = native.norm_of_sum(x, added, norm)
            of_x = native.norm(x, norm)
            assert torch.equal(total, x + added)
            for normed, of in ((of_x, x), (of_sum, total)):
                wide = of.double()
                parts = [part.double() if part is not None else None for part in (weight, bias)]
                expected = (
                    functional.layer_norm(wide, (size,), *parts, 1e-5)
                    if is_layer_norm
                    else functional.rms_norm(wide, (size,), parts[0], 1e-5)
                )
                torch.testing.assert_close(normed.double(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize(
    ("name", "activation"),
    [("silu", functional.silu), ("gelu_pytorch_tanh", lambda x: functional.gelu(x, approximate="tanh"))],
)
def test_gates_equal_torch(
    native: DecoderKernels, name: str, activation: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Small and large arguments of both signs, to where the exponential would overflow."""
    for size in SIZES:
        x = torch.randn(21, 2 * size) * torch.logspace(-4, 3, 21)[:, None]
        gate, up = x.double().chunk(2, dim=-1)
        expected = activation(gate) * up
        torch.testing.assert_close(native.gated_product(x, name).double(), expected, atol=1e-6, rtol=1e-5)


def test_what_is_not_a_number_stays_so(native: DecoderKernels) -> None:
    """A NaN is not lost in a norm, a gate or a softmax."""
    x = torch.randn(2, 64)
    x[1, 3] = torch.nan
    layout = torch.tensor([[0, 1], [0, 0], [1, 1]])
    cache = CachedHeads(torch.zeros(2, 1, 4, 16), torch.zeros(2, 1, 4, 16))
    results = (
        native.norm(x, RowNorm(None, None, 1e-5, is_layer_norm=False)),
        native.gated_product(x, "silu"),
        native.attend(x.clone(), cache, layout, None, AttentionKind(num_heads=2, scale=1.0)),
    )
    for result in results:
        assert result[1].isnan().any()
        assert not result[0].isnan().any()
