"""Linear layers of every scheme."""

from collections.abc import Iterable

import pytest
import torch
from integer_products import integer_product, rotated, round_activations

from llmpq.errors import InvalidInputError
from llmpq.plan import LayerPrecision
from llmpq.schemes import GROUP_SIZES, SCHEMES
from quantizer.dynamic_int8 import DynamicInt8Linear, SimulatedInt8Linear
from quantizer.linear import QuantizedLinear, build_linear, supported_schemes
from quantizer.methods import round_weight
from quantizer.multi_path import MultiPathLinear
from quantizer.native.library import kernels
from quantizer.path_timing import Forward
from quantizer.rotation import rotate
from quantizer.rounded import SixteenBits
from quantizer.rounding import round_rows

CPU = torch.device("cpu")
SHAPES = ((64, 128), (37, 91), (5, 200), (1, 1), (300, 1100))


def _quantize(weight: torch.Tensor, bias: torch.Tensor | None, scheme: str, group_size: int = 64) -> QuantizedLinear:
    precision = LayerPrecision(scheme, group_size)
    return build_linear(round_weight(weight, precision), bias, precision.scheme, compute_dtype=torch.float32)


def _relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.fixture(params=["native", "torch"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether there are native kernels; as if there were none, too, for hosts where they cannot be built."""
    if request.param == "torch":
        monkeypatch.setattr("quantizer.linear.kernels", lambda: None)
        monkeypatch.setattr("quantizer.weight_only.kernels", lambda: None)
    elif kernels() is None:
        pytest.skip("the native library is not built on this host")
    return request.param == "native"


def _all_paths(linear: QuantizedLinear) -> Iterable[Forward]:
    return linear.paths().values() if isinstance(linear, MultiPathLinear) else (linear.forward,)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("scheme", ["w16", "w8", "w4", "w3"])
def test_weight_only_forward_is_the_product_with_the_dequantized_weight(
    *, scheme: str, group_size: int, shape: tuple[int, int], has_bias: bool, native: bool
) -> None:
    """By every path, w16 and w8 are x @ dequantized.T + bias; w4 and w3 too, but natively of rounded activations."""
    bias = torch.randn(shape[0]) if has_bias else None
    linear = _quantize(torch.randn(shape), bias, scheme, group_size)
    is_rounded = native and scheme in {"w4", "w3"}
    for num_rows in (0, 1, 7):
        x = torch.randn(num_rows, shape[1])
        activations = round_activations(x, group_size or 64) if is_rounded else x.double()
        expected = activations @ linear.dequantized().double().T + (bias.double() if bias is not None else 0)
        for path in _all_paths(linear):
            assert torch.allclose(path(x).double(), expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_w8a8_forward_is_the_integer_reference(*, shape: tuple[int, int], has_bias: bool, native: bool) -> None:
    """w8a8 sums products of int8 in integers; activations share a scale by token, natively by token and 64 inputs.

    Whole groups of 64 are rotated before they are rounded.
    """
    weight, bias = torch.randn(shape), torch.randn(shape[0]) if has_bias else None
    x = torch.randn(9, shape[1])
    linear = _quantize(weight, bias, "w8a8")
    stood_for = linear.dequantized()
    if shape[1] % 64 == 0:
        x_multiplied, stood_for = rotate(x), rotated(stood_for)
        assert torch.allclose(x_multiplied, rotated(x), atol=1e-5)
    else:
        x_multiplied = x
    expected = integer_product(x_multiplied, stood_for, bias, 64 if native else shape[1])
    assert _relative_error(linear.forward(x), expected) < 1e-5


def test_simulated_w8a8_agrees_with_the_integer_product() -> None:
    """Where there is no integer product, floating point comes to the same numbers."""
    weight, bias, x = torch.randn(64, 96), torch.randn(64), torch.randn(5, 96)
    simulated, exact = (kind(round_rows(weight), bias) for kind in (SimulatedInt8Linear, DynamicInt8Linear))
    assert _relative_error(simulated.forward(x), exact.forward(x)) < 1e-5


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_token_does_not_depend_on_its_neighbours(scheme: str) -> None:
    """Each row's result is its own: no scale reaches across tokens."""
    linear = _quantize(torch.randn(48, 64), None, scheme)
    x = torch.randn(4, 64) * torch.tensor([1.0, 100.0, 0.01, 0.0])[:, None]
    for row in range(4):
        together, alone = linear.forward(x)[row], linear.forward(x[row : row + 1])[0]
        assert (together - alone).norm() <= 1e-5 * alone.norm()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_memory_layout_does_not_matter(scheme: str) -> None:
    """Transposed weights and strided inputs give what contiguous ones give."""
    weight, x = torch.randn(96, 64), torch.randn(5, 96)
    expected = _quantize(weight.T.contiguous(), None, scheme).forward(x)
    linear = _quantize(weight.T, None, scheme)
    for strided in (x.T.contiguous().T, torch.cat((x, x), dim=1)[:, 96:]):
        assert torch.allclose(linear.forward(strided), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_stacking_along_outputs_changes_nothing(scheme: str) -> None:
    """Matrices stacked along the output axis give their outputs side by side."""
    parts, x = [torch.randn(rows, 96) for rows in (64, 32, 32)], torch.randn(3, 96)
    stacked = _quantize(torch.cat(parts), None, scheme)
    apart = torch.cat([_quantize(part, None, scheme).forward(x) for part in parts], dim=1)
    assert torch.allclose(stacked.forward(x), apart, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_memory_is_at_most_what_the_scheme_says(scheme: str, group_size: int, shape: tuple[int, int]) -> None:
    """Weights and metadata take no more bytes than planning counts, and the bias 4 a channel."""
    linear = _quantize(torch.randn(shape), torch.randn(shape[0]), scheme, group_size)
    assert linear.memory_bytes == linear.weight_bytes + 4 * shape[0]
    assert linear.weight_bytes <= SCHEMES[scheme].weight_bytes(*shape, group_size)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("scheme", "bits"),
    [("w16", 16), ("w8", 8 + 32 / 576), ("w8a8", 8 + 32 / 576), ("w4", 4 + 24 / 64), ("w3", 3 + 24 / 64)],
)
def test_weights_are_as_dense_as_they_are_called(scheme: str, bits: float) -> None:
    """A matrix of SmolLM2 takes the bits of its codes and of its groups' metadata, and planning counts just these."""
    shape = (960, 576)
    linear = _quantize(torch.randn(shape), None, scheme)
    if scheme == "w8a8":  # oneDNN keeps a sum per output channel
        assert linear.weight_bytes <= SCHEMES[scheme].weight_bytes(*shape, 64) <= shape[0] * (shape[1] + 8)
    else:
        assert linear.weight_bytes == SCHEMES[scheme].weight_bytes(*shape, 64) == shape[0] * shape[1] * bits / 8


@pytest.mark.parametrize("group_size", [0, 64])
def test_fewer_bits_are_less_exact(group_size: int) -> None:
    """On random matrices the error grows from w16 over w8 and w4 to w3, and rounding activations adds to w8's."""
    weight, x = torch.randn(128, 512), torch.randn(32, 512)
    errors = {
        scheme: _relative_error(_quantize(weight, None, scheme, group_size).forward(x), x @ weight.T)
        for scheme in SCHEMES
    }
    assert errors["w16"] < errors["w8"] < errors["w8a8"] < errors["w4"] < errors["w3"]


@pytest.mark.parametrize(("small", "large"), [(32, 64), (64, 128), (128, 0)])
def test_smaller_groups_are_more_exact(small: int, large: int) -> None:
    """Smaller groups follow the weights more closely."""
    weight = torch.randn(128, 1024)
    fine, coarse = (_quantize(weight, None, "w4", size).dequantized() for size in (small, large))
    assert _relative_error(fine, weight) < _relative_error(coarse, weight)


@pytest.mark.parametrize(
    ("source", "stored"),
    [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16), (torch.float32, torch.float16)],
)
def test_w16_keeps_16_bit_sources(source: torch.dtype, stored: torch.dtype) -> None:
    """bf16 and fp16 weights are kept bit by bit, and fp32 becomes fp16."""
    weight = torch.randn(8, 8).to(source)
    assert torch.equal(_quantize(weight, None, "w16").dequantized(), weight.to(stored).float())


def test_w16_falls_back_on_bf16() -> None:
    """fp32 weights beyond the range of fp16 become bf16 rather than infinite."""
    weight = torch.tensor([[70000.0, 1.0]])
    assert torch.equal(_quantize(weight, None, "w16").dequantized(), weight.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
def test_w16_is_stored_as_it_is_multiplied(source: torch.dtype, dtype: torch.dtype) -> None:
    """Computing in 16 bits, a weight of the other 16-bit type is converted when it is built, not for every product."""
    weight = torch.randn(8, 8).to(source)
    linear = build_linear(SixteenBits(weight), None, "w16", compute_dtype=dtype)
    assert linear._stored.dtype == dtype
    assert torch.equal(linear.dequantized(), weight.to(dtype).float())


def test_w16_does_not_copy_a_16_bit_source() -> None:
    """A 16-bit weight is held where it is, so a tied embedding takes its memory once."""
    weight = torch.randn(8, 8).half()
    linear = _quantize(weight, None, "w16")
    weight.zero_()
    assert (linear.dequantized() == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_computing(scheme: str, dtype: torch.dtype) -> None:
    """With a 16-bit compute type inputs, bias and outputs are of that type and nothing but rounding differs."""
    weight, bias, x = torch.randn(40, 64), torch.randn(40), torch.randn(3, 64)
    precision = LayerPrecision(scheme, 32)
    linear = build_linear(round_weight(weight, precision), bias, precision.scheme, compute_dtype=dtype)
    result = linear.forward(x.to(dtype))
    assert result.dtype == dtype
    assert _relative_error(result, _quantize(weight, bias, scheme, 32).forward(x)) < 0.02


@pytest.mark.parametrize(
    ("precision", "reason", "choices"),
    [
        (LayerPrecision("w5", 64), "UNKNOWN_SCHEME", "w16, w8, w8a8, w4, w3"),
        (LayerPrecision("w4", 48), "UNKNOWN_GROUP_SIZE", "0, 32, 64, 128"),
    ],
)
def test_unknown_precisions_are_refused_with_what_exists(precision: LayerPrecision, reason: str, choices: str) -> None:
    """An unknown scheme or group size is refused by a message that lists those there are."""
    with pytest.raises(InvalidInputError, match=choices) as refused:
        round_weight(torch.randn(2, 2), precision)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "weight",
    [torch.randn(4), torch.ones(2, 2, dtype=torch.int8), torch.empty(0, 4), torch.tensor([[1.0, float("nan")]])],
    ids=["vector", "integers", "empty", "nan"],
)
def test_damaged_weights_are_refused(weight: torch.Tensor) -> None:
    """A weight that is no finite matrix of floats is refused."""
    with pytest.raises(InvalidInputError) as refused:
        _quantize(weight, None, "w8")
    assert refused.value.reason == "BAD_WEIGHT"


def test_unknown_devices_are_refused() -> None:
    """CPU and CUDA devices run every scheme; for another kind the message names the known ones."""
    assert supported_schemes(CPU) == supported_schemes(torch.device("cuda:1")) == tuple(SCHEMES)
    with pytest.raises(InvalidInputError, match="cpu and cuda"):
        supported_schemes(torch.device("meta"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_cuda_agrees_with_the_cpu(scheme: str) -> None:
    """A CUDA device computes what the CPU does, up to 16-bit rounding."""
    weight, bias, x = torch.randn(96, 160), torch.randn(96), torch.randn(5, 160)
    precision = LayerPrecision(scheme, 64)
    linear = build_linear(round_weight(weight.cuda(), precision), bias, precision.scheme, compute_dtype=torch.float16)
    result = linear.forward(x.to("cuda", torch.float16)).cpu()
    assert _relative_error(result, _quantize(weight, bias, scheme).forward(x)) < 0.01
