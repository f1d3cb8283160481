"""What the Triton kernels compute, by Triton's interpreter: exact references on small shapes, without a GPU."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional
from triton_child import (
    HAS_TRITON,
    WHY_SKIPPED,
    far_rows_product,
    layer_facts,
    path_outputs,
    rounded_tokens,
    rows_compiled_for,
    split_product,
    triton_child,
)

from llmpq.schemes import SCHEMES
from quantizer.kernel_choice import ROW_BUCKETS
from quantizer.rounded import GroupRounded, RowRounded
from quantizer.rounding import round_groups, round_rows

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason=WHY_SKIPPED)

AMPERE, TURING = (8, 0), (7, 5)
#: One step of the last bit of each type, relative.
LAST_BIT = {torch.float16: 2**-10, torch.bfloat16: 2**-7}
Child = Callable[..., Any]


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """A process in which kernels are interpreted."""
    with triton_child(TRITON_INTERPRET="1") as run:
        yield run


def _assert_close(outputs: dict[str, torch.Tensor], expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Each path's result is of the type, and as a whole nearer to the float64 reference than its last bit."""
    for path, output in outputs.items():
        assert output.dtype == dtype, path
        assert output.shape == expected.shape, path
        assert (output.double() - expected).norm() <= LAST_BIT[dtype] * expected.norm(), path


def _reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    products = x.double() @ weight.double().T
    return products + bias.double() if bias is not None else products


@pytest.mark.parametrize("num_rows", [1, 21])
@pytest.mark.parametrize("shape", [(48, 256), (37, 91)])
@pytest.mark.parametrize("group_size", [0, 32, 64, 128])
@pytest.mark.parametrize("bits", [4, 3])
def test_grouped_products(child: Child, bits: int, group_size: int, shape: tuple[int, int], num_rows: int) -> None:
    """Every path of w4 and w3 multiplies by the dequantized weight, at odd shapes too."""
    rounded = round_groups(torch.randn(shape), bits, group_size)
    bias = torch.randn(shape[0]).half() if num_rows > 1 else None
    x = torch.randn(num_rows, shape[1]).half()
    outputs = child(path_outputs, "group_linear", rounded, bias, AMPERE, x)
    assert list(outputs) == ["few_rows", "many_rows", "cublas"]
    _assert_close(outputs, _reference(x, rounded.dequantized(), bias), torch.float16)


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("num_rows", [1, 3, 9])
def test_grouped_products_without_tensor_cores(child: Child, bits: int, num_rows: int) -> None:
    """Chips before 8.0 take smaller blocks, of one row if there is one."""
    rounded = round_groups(torch.randn(40, 200), bits, 64)
    x = torch.randn(num_rows, 200).half()
    outputs = child(path_outputs, "group_linear", rounded, None, TURING, x)
    assert list(outputs) == ["few_rows", "cublas"]
    _assert_close(outputs, _reference(x, rounded.dequantized(), None), torch.float16)


@pytest.mark.parametrize("build", ["group_linear", "int8_linear"])
def test_bfloat16_products(child: Child, build: str) -> None:
    """Codes become bfloat16 exactly too."""
    weight, bias = torch.randn(48, 256), torch.randn(48).bfloat16()
    rounded = round_groups(weight, 4, 64) if build == "group_linear" else round_rows(weight)
    x = torch.randn(5, 256).bfloat16()
    outputs = child(path_outputs, build, rounded, bias, AMPERE, x)
    _assert_close(outputs, _reference(x, rounded.dequantized(), bias), torch.bfloat16)


@pytest.mark.parametrize("bits", [4, 3])
def test_extreme_codes_and_zero_points(child: Child, bits: int) -> None:
    """The largest code less the smallest zero point, and the other way round, at the largest scale."""
    codes = torch.tensor([0, 2**bits - 1], dtype=torch.uint8).repeat(16, 64)
    zeros = torch.tensor([[0, 2**bits - 1]], dtype=torch.uint8).repeat(16, 1)
    scales = torch.full((16, 2), 4000.0).half()
    rounded = GroupRounded(codes, scales, zeros, bits, 64)
    x = torch.zeros(2, 128).half()
    x[0, 1] = x[1, 64] = 1.0
    outputs = child(path_outputs, "group_linear", rounded, None, AMPERE, x)
    for output in outputs.values():
        assert torch.equal(output.double(), _reference(x, rounded.dequantized(), None))


@pytest.mark.parametrize("num_rows", [1, 21])
@pytest.mark.parametrize("shape", [(48, 256), (37, 91)])
def test_int8_weights(child: Child, shape: tuple[int, int], num_rows: int) -> None:
    """Every path of w8 multiplies by the dequantized weight."""
    rounded, bias = round_rows(torch.randn(shape)), torch.randn(shape[0]).half()
    x = torch.randn(num_rows, shape[1]).half()
    outputs = child(path_outputs, "int8_linear", rounded, bias, AMPERE, x)
    assert list(outputs) == ["few_rows", "many_rows", "cublas"]
    _assert_close(outputs, _reference(x, rounded.dequantized(), bias), torch.float16)


@pytest.mark.parametrize("num_rows", [1, 21])
@pytest.mark.parametrize("shape", [(24, 256), (37, 91)])
@pytest.mark.parametrize("group_size", [0, 64, 128])
def test_int8_products(child: Child, group_size: int, shape: tuple[int, int], num_rows: int) -> None:
    """w8a8 is the integer reference: exact sums of rounded activations and weights, times both scales."""
    weight, bias, x = _int8_case(shape, num_rows)
    outputs = child(path_outputs, "rounding_linear", weight, bias, AMPERE, x, group_size)
    assert list(outputs) == ["few_rows", "many_rows"] + ["cublas"] * (group_size == 0)
    _assert_close(outputs, _integer_reference(x, weight, bias, group_size), torch.float16)


@pytest.mark.parametrize("num_rows", [1, 40])
def test_int8_products_without_those_of_triton(child: Child, num_rows: int) -> None:
    """On 7.5 cuBLAS multiplies, with one scale a token."""
    weight, bias, x = _int8_case((37, 91), num_rows)
    outputs = child(path_outputs, "rounding_linear", weight, bias, TURING, x, 0)
    assert list(outputs) == ["cublas"]
    _assert_close(outputs, _integer_reference(x, weight, bias, 0), torch.float16)


def _int8_case(shape: tuple[int, int], num_rows: int) -> tuple[RowRounded, torch.Tensor, torch.Tensor]:
    """A weight, a bias, and activations of very different tokens."""
    x = torch.randn(num_rows, shape[1]) * torch.logspace(-3, 1, num_rows)[:, None]
    return round_rows(torch.randn(shape)), torch.randn(shape[0]).half(), x.half()


def _integer_reference(x: torch.Tensor, weight: RowRounded, bias: torch.Tensor, group_size: int) -> torch.Tensor:
    """Sums of int64 products, scaled by group of activations and by output channel."""
    sums = torch.zeros(len(x), weight.shape[0], dtype=torch.float64)
    for x_group, codes in zip(
        x.split(group_size or x.shape[1], dim=1), weight.codes.split(group_size or x.shape[1], dim=1), strict=True
    ):
        rounded = round_rows(x_group)
        sums += (rounded.codes.long() @ codes.long().T).double() * rounded.scales[:, None].double()
    return sums * weight.scales.double() + bias.double()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("group_size", [0, 64, 128])
def test_tokens_are_rounded_as_on_the_cpu(child: Child, group_size: int, dtype: torch.dtype) -> None:
    """Codes and scales of each token, or of each of its groups, are those of `round_rows`, and what is over is 0."""
    x = (torch.randn(7, 300) * torch.logspace(-4, 3, 7)[:, None]).to(dtype)
    x[3] = 0
    codes, scales = child(rounded_tokens, x, 304, group_size)
    for index, group in enumerate(x.split(group_size or 300, dim=1)):
        expected = round_rows(group)
        first = index * group_size
        assert torch.equal(codes[:, first : first + group.shape[1]], expected.codes)
        assert torch.equal(scales[index], expected.scales)
    assert not codes[:, 300:].any()


@pytest.mark.parametrize("group_size", [0, 64])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_lost(child: Child, value: float, group_size: int) -> None:
    """An activation that is no number shows in every output of its token, and in no other token's."""
    x = torch.randn(3, 128).half()
    x[1, 70] = value
    weight = round_rows(torch.randn(16, 128))
    for output in child(path_outputs, "rounding_linear", weight, None, AMPERE, x, group_size).values():
        assert output.isfinite().all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("build", ["group_linear", "int8_linear", "rounding_linear"])
def test_no_rows(child: Child, build: str) -> None:
    """No rows in, no rows out."""
    weight = torch.randn(16, 64)
    rounded = round_groups(weight, 4, 32) if build == "group_linear" else round_rows(weight)
    arguments = (64,) if build == "rounding_linear" else ()
    outputs = child(path_outputs, build, rounded, None, AMPERE, torch.randn(0, 64).half(), *arguments)
    assert all(output.shape == (0, 16) for output in outputs.values())


def test_input_channels_are_split_among_programs(child: Child) -> None:
    """Splitting changes nothing but the order of a few sums, and leaves its counters ready for the next product."""
    rounded, x = round_groups(torch.randn(80, 1024), 4, 128), torch.randn(3, 1024).half()
    products, num_splits, num_unfinished = child(split_product, rounded, x, 8)
    assert num_splits == 4
    assert num_unfinished == 0
    assert torch.equal(*products)
    _assert_close({"split": products[0]}, _reference(x, rounded.dequantized(), None), torch.float16)


def test_offsets_reach_beyond_32_bits(child: Child) -> None:
    """Rows may lie further apart than 2**31 elements."""
    rounded, x = round_groups(torch.randn(16, 128), 4, 64), torch.randn(4, 128).half()
    outputs = child(far_rows_product, rounded, x, 2**30)
    _assert_close(outputs, _reference(x, rounded.dequantized(), None), torch.float16)


@pytest.mark.parametrize("shape", [(64, 256), (37, 91)])
@pytest.mark.parametrize(("scheme", "group_size"), [("w4", 64), ("w4", 0), ("w3", 128), ("w3", 32), ("w8", 0)])
def test_layers_hold_what_the_scheme_says(child: Child, scheme: str, group_size: int, shape: tuple[int, int]) -> None:
    """A layer stands for the weight it was given; of whole tiles it stores the bytes that planning counts."""
    weight, bias = torch.randn(shape), torch.randn(shape[0]).half()
    rounded: GroupRounded | RowRounded
    if scheme == "w8":
        build, rounded = "int8_linear", round_rows(weight)
    else:
        build, rounded = "group_linear", round_groups(weight, int(scheme[1]), group_size)
    dequantized, weight_bytes, memory_bytes, kind = child(layer_facts, build, rounded, bias)
    assert torch.equal(dequantized, rounded.dequantized())
    assert memory_bytes == weight_bytes + bias.nbytes
    counted = SCHEMES[scheme].weight_bytes(*shape, group_size)
    assert weight_bytes == counted if scheme == "w8" or shape == (64, 256) else weight_bytes > counted
    assert kind.startswith(f"w{scheme[1]}")
    assert "triton" in kind


def test_padding_has_no_say(child: Child) -> None:
    """Activations beyond the last input channel of a row, which are the next row's, do not count."""
    rounded = round_groups(torch.randn(16, 91), 3, 64)
    x = functional.pad(torch.zeros(1, 91), (0, 0, 0, 1), value=60000.0).half()
    for output in child(path_outputs, "group_linear", rounded, None, AMPERE, x).values():
        assert not output[0].any()


def test_kernels_are_compiled_once_before_they_are_measured(child: Child) -> None:
    """The first layer of a kind is run with every number of rows that is chosen for; a bias makes another kind."""
    every = list(ROW_BUCKETS)
    assert child(rows_compiled_for, [False, False, True, True]) == [every, [], every, []]
