"""The integer product, on this CPU and held to older instruction sets."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from quantizer.int8_gemm import Int8Matrix, saturates
from quantizer.rounded import RowRounded

_SHAPES = ((64, 128), (19, 37), (1, 1), (100, 333), (256, 1000))


def _random_codes(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def assert_exact(weight: torch.Tensor, activations: torch.Tensor) -> None:
    """Asserts that each product is the integer sum, rounded to float32 once per half."""
    matrix = Int8Matrix(RowRounded(weight, torch.ones(weight.shape[0])))
    sums = activations.long() @ weight.long().T
    assert torch.allclose(matrix.multiply(activations).double(), sums.double(), rtol=2**-22, atol=0)


def assert_exact_everywhere() -> None:
    """Asserts exactness on random and on the worst codes, of one row and of several."""
    for out_features, in_features in _SHAPES:
        for num_rows in (0, 1, 2, 33):
            assert_exact(_random_codes(out_features, in_features), _random_codes(num_rows, in_features))
        for sign in (1, -1):
            worst = torch.full((out_features, in_features), 127, dtype=torch.int8)
            assert_exact(worst * sign, worst[:3])


def test_product_is_exact() -> None:
    """The product equals the integer reference."""
    assert_exact_everywhere()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86-64")
@pytest.mark.parametrize(
    ("onednn_isa", "aten_capability"), [("SSE41", "default"), ("AVX2", "avx2"), ("AVX512_CORE", "avx512")]
)
def test_product_is_exact_on_older_instruction_sets(onednn_isa: str, aten_capability: str) -> None:
    """Sums do not saturate where the CPU has no VNNI, although oneDNN's own product does."""
    held_back = os.environ | {"ONEDNN_MAX_CPU_ISA": onednn_isa, "ATEN_CPU_CAPABILITY": aten_capability}
    program = f"import runpy; t = runpy.run_path({__file__!r}); t['assert_exact_everywhere'](); print(t['saturates']())"
    done = subprocess.run([sys.executable, "-c", program], env=held_back, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


def test_scales_belong_to_output_channels() -> None:
    """Each output channel is multiplied by its own scale."""
    weight, activations, scales = _random_codes(5, 16), _random_codes(3, 16), torch.rand(5)
    products = Int8Matrix(RowRounded(weight, scales)).multiply(activations)
    assert torch.allclose(products, (activations.float() @ weight.float().T) * scales)


@pytest.mark.parametrize("shape", _SHAPES)
def test_codes_can_be_read_back(shape: tuple[int, int]) -> None:
    """The layout of the product loses nothing, so that no second copy of the codes need be kept."""
    weight = _random_codes(*shape)
    assert torch.equal(Int8Matrix(RowRounded(weight, torch.ones(shape[0]))).codes(), weight)


def test_the_probe_is_right() -> None:
    """A product of the largest codes by oneDNN alone is wrong if and only if the probe says that it saturates."""
    weight = torch.full((1, 256), 127, dtype=torch.int8)
    activations = torch.full((1, 256), 255, dtype=torch.uint8)
    product = torch.ops.onednn.qlinear_pointwise(
        activations,
        1.0,
        128,
        torch.ops.onednn.qlinear_prepack(weight, None),
        torch.ones(1),
        torch.zeros(1, dtype=torch.int32),
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    assert (product.item() != 256 * 127 * 127) == saturates()
