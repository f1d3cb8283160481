"""The Triton kernels on a GPU: what the interpreter cannot show."""

from collections.abc import Callable

import pytest
import torch

from llmpq.plan import LayerPrecision, Rounding
from quantizer.cuda.build import triton_linear
from quantizer.input_statistics import InputStatistics
from quantizer.linear import build_linear
from quantizer.methods import round_weight
from quantizer.multi_path import MultiPathLinear
from quantizer.quantized_linear import QuantizedLinear

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SCHEMES = ("w8", "w8a8", "w4", "w3")
MakeLayer = Callable[..., MultiPathLinear]


@pytest.fixture
def make_layer() -> MakeLayer:
    """Makes layers of random weights with a bias, in float16."""

    def make(scheme: str, shape: tuple[int, int], device: str = "cuda") -> MultiPathLinear:
        unrotated = Rounding(is_unrotated=True)  # others are rotated before they reach these kernels
        weight = round_weight(torch.randn(shape, device=device), LayerPrecision(scheme, 64), unrotated)
        layer = triton_linear(weight, torch.randn(shape[0], device=device).half(), scheme, torch.float16)
        if layer is None:
            pytest.skip(f"no kernels for {scheme} on this device")
        return layer

    return make


def _relative_error(layer: QuantizedLinear, x: torch.Tensor, result: torch.Tensor) -> float:
    expected = x.double() @ layer.dequantized().double().T + layer.bias.double()
    return ((result.double() - expected).norm() / expected.norm()).item()


def _check_captured(layer: QuantizedLinear, x: torch.Tensor) -> None:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer.forward(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(captured, layer.forward(x))


@pytest.mark.parametrize("num_rows", [1, 7, 16, 33, 200])
@pytest.mark.parametrize("shape", [(2048, 1024), (333, 1000), (1024, 4096)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_path_is_right(make_layer: MakeLayer, scheme: str, shape: tuple[int, int], num_rows: int) -> None:
    """Results are those of the dequantized weight, up to rounding; activations in 8 bits cost a little more."""
    layer, x = make_layer(scheme, shape), torch.randn(num_rows, shape[1], device="cuda").half()
    for path, forward in layer.paths().items():
        assert _relative_error(layer, x, forward(x)) < (0.02 if scheme == "w8a8" else 2**-10), path


@pytest.mark.parametrize("scheme", SCHEMES)
def test_results_are_the_same_every_time(make_layer: MakeLayer, scheme: str) -> None:
    """Programs that share a tile add up in the same order whoever comes last, a thousand times."""
    layer, x = make_layer(scheme, (512, 8192)), torch.randn(5, 8192, device="cuda").half()
    for path, forward in layer.paths().items():
        first = forward(x)
        assert all(torch.equal(forward(x), first) for _ in range(1000)), path


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_can_be_captured(make_layer: MakeLayer, scheme: str) -> None:
    """A captured graph computes what the call does, on new inputs too."""
    layer = make_layer(scheme, (1024, 2048))
    x = torch.randn(4, 2048, device="cuda").half()
    layer.choose_paths(x.device, x.dtype)
    layer.forward(x)
    _check_captured(layer, x)


@pytest.mark.parametrize("method", ["nearest", "gptq"])
def test_rotated_products_are_right_and_can_be_captured(method: str) -> None:
    """w8a8 rotates its inputs in front of the kernels, of any layout, and in a captured graph too."""
    weight = torch.randn(512, 1024, device="cuda")
    inputs = InputStatistics()
    inputs.update(torch.randn(2048, 1024, device="cuda"))
    rounded = round_weight(weight.half(), LayerPrecision("w8a8"), Rounding(method), inputs)
    layer = build_linear(rounded, torch.zeros(512), "w8a8", compute_dtype=torch.float16)
    x = torch.randn(4, 2048, device="cuda").half()[:, ::2]
    assert _relative_error(layer, x, layer.forward(x)) < 0.02
    _check_captured(layer, x)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_kernels_run_where_their_tensors_are(make_layer: MakeLayer, scheme: str) -> None:
    """A layer on another device than the current one computes there."""
    layer = make_layer(scheme, (256, 512), "cuda:1")
    x = torch.randn(3, 512, device="cuda:1").half()
    assert torch.cuda.current_device() == 0
    assert _relative_error(layer, x, layer.forward(x)) < 0.02
