"""The native kernels, for every instruction set that this CPU has."""

import ctypes
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from integer_products import integer_product

from quantizer.native import build
from quantizer.native.library import Kernels, kernels, usable_instruction_sets
from quantizer.rotation import rotate
from quantizer.rounded import GroupRounded, RowRounded
from quantizer.rounding import round_groups, round_rows
from quantizer.tiles import TiledWeight

needs_library = pytest.mark.skipif(kernels() is None, reason="the native library is not built on this host")

#: (bits, group size) of each layout of weights.
WEIGHTS = [(8, 0)] + [(bits, group_size) for bits in (4, 3) for group_size in (0, 32, 64, 128)]
SHAPES = ((64, 128), (37, 91), (5, 200), (1, 1), (48, 4160))
ROWS = (1, 2, 3, 5, 7, 12, 13, 70)


@pytest.fixture(params=build.INSTRUCTION_SETS)
def native(request: pytest.FixtureRequest) -> Kernels:
    """The kernels of each instruction set."""
    if request.param not in usable_instruction_sets():
        pytest.skip(f"this CPU, or this process, has no {request.param}")
    return Kernels(ctypes.CDLL(str(build.library_path())), request.param)


def _round(weight: torch.Tensor, bits: int, group_size: int) -> RowRounded | GroupRounded:
    return round_rows(weight) if bits == 8 else round_groups(weight, bits, group_size)


def _exact_weight(bits: int, group_size: int, shape: tuple[int, int]) -> RowRounded | GroupRounded:
    """Random codes of all values, with scales that are powers of two."""
    out_features, in_features = shape
    if bits == 8:
        codes = torch.randint(-128, 128, shape, dtype=torch.int8)
        return RowRounded(codes, 2.0 ** torch.randint(-3, 3, (out_features,)))
    num_groups = -(-in_features // (group_size or in_features))
    return GroupRounded(
        torch.randint(0, 2**bits, shape, dtype=torch.uint8),
        (2.0 ** torch.randint(-3, 3, (out_features, num_groups))).half(),
        torch.randint(0, 2**bits, (out_features, num_groups), dtype=torch.uint8),
        bits,
        group_size,
    )


@needs_library
@pytest.mark.parametrize("unpacks_first", [False, True])
@pytest.mark.parametrize(("bits", "group_size"), WEIGHTS)
def test_sums_are_exact(*, native: Kernels, bits: int, group_size: int, unpacks_first: bool) -> None:
    """Where scales are powers of two and activations are whole, the result is the integer sum, bit by bit."""
    for shape in SHAPES:
        rounded = _exact_weight(bits, group_size, shape)
        weight = TiledWeight.of(rounded)
        for num_rows in ROWS:
            x = torch.randint(-127, 128, (num_rows, shape[1])).float()
            x[:, :: weight.activation_group_size] = 127.0  # so the scale of every group is 1
            expected = x.double() @ rounded.dequantized().double().T
            assert torch.equal(native.multiply_codes(x, weight, None, unpacks_first=unpacks_first).double(), expected)


@needs_library
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("bits", "group_size"), WEIGHTS)
def test_the_largest_sums_do_not_overflow(native: Kernels, bits: int, group_size: int, sign: int) -> None:
    """Nothing saturates or wraps where all codes are the largest, on either side of the zero point."""
    shape = (17, 256)
    rounded = _exact_weight(bits, group_size, shape)
    if isinstance(rounded, RowRounded):
        rounded.codes.fill_(127 * sign)
    else:
        rounded.codes.fill_(2**bits - 1 if sign > 0 else 0)
        rounded.zeros.fill_(0 if sign > 0 else 2**bits - 1)
    x = torch.full((3, shape[1]), 127.0) * torch.tensor([1.0, -1.0, 1.0])[:, None]
    for unpacks_first in (False, True):
        result = native.multiply_codes(x, TiledWeight.of(rounded), None, unpacks_first=unpacks_first)
        assert torch.equal(result.double(), x.double() @ rounded.dequantized().double().T)


@needs_library
@pytest.mark.parametrize(("bits", "group_size"), WEIGHTS)
def test_activations_are_rounded_by_row_and_group(native: Kernels, bits: int, group_size: int) -> None:
    """Any activations, also outliers and rows of zeros, give the product of their rounded values."""
    for shape in SHAPES:
        rounded, bias = _round(torch.randn(shape), bits, group_size), torch.randn(shape[0])
        weight = TiledWeight.of(rounded)
        for num_rows in ROWS:
            x = torch.randn(num_rows, shape[1]) * torch.logspace(-3, 3, num_rows)[:, None]
            x[:, 0] *= 50
            x[-1] = 0
            expected = integer_product(x, rounded.dequantized(), bias, weight.activation_group_size)
            actual = native.multiply_codes(x, weight, bias, unpacks_first=False).double()
            magnitude = expected.abs().amax(dim=1, keepdim=True)
            assert ((actual - expected).abs() <= 1e-5 * magnitude).all()


@needs_library
def test_activations_of_rotated_weights_are_rotated_bit_by_bit_as_by_torch(native: Kernels) -> None:
    """What a kernel rotates and rounds is what it rounds of activations that torch's operators have rotated."""
    for num_rows in ROWS:
        x, rounded = torch.randn(num_rows, 192), _round(torch.randn(70, 192), 8, 0)
        x[:, 5] *= 50
        plain, of_rotated = TiledWeight.of(rounded), TiledWeight.of(replace(rounded, is_rotated=True))
        expected = native.multiply_codes(rotate(x), plain, None, unpacks_first=False)
        assert torch.equal(native.multiply_codes(x, of_rotated, None, unpacks_first=False), expected)


@needs_library
@pytest.mark.parametrize(("bits", "group_size"), [(8, 0), (4, 64), (3, 128), (3, 0)])
def test_a_row_does_not_depend_on_its_company(native: Kernels, bits: int, group_size: int) -> None:
    """A row comes out the same, bit by bit, alone and among others, on one thread and on two, by either path."""
    weight, bias = TiledWeight.of(_round(torch.randn(200, 2300), bits, group_size)), torch.randn(200)
    x = torch.randn(31, 2300)
    alone = torch.cat([native.multiply_codes(row[None], weight, bias, unpacks_first=False) for row in x])
    num_threads = torch.get_num_threads()
    try:
        for torch_threads in (1, 2):
            torch.set_num_threads(torch_threads)
            for unpacks_first in (False, True):
                for num_rows in (2, 5, 17, 31):
                    together = native.multiply_codes(x[:num_rows], weight, bias, unpacks_first=unpacks_first)
                    assert torch.equal(together, alone[:num_rows])
    finally:
        torch.set_num_threads(num_threads)


@needs_library
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_not_lost(native: Kernels, bad: float) -> None:
    """NaN or infinity in a row makes its result NaN or infinite, and leaves other rows alone."""
    weight = TiledWeight.of(round_rows(torch.randn(20, 100)))
    x = torch.randn(3, 100)
    clean = native.multiply_codes(x, weight, None, unpacks_first=False)
    x[1, 70] = bad
    result = native.multiply_codes(x, weight, None, unpacks_first=False)
    assert not result[1].isfinite().any()
    assert torch.equal(result[[0, 2]], clean[[0, 2]])


@needs_library
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_weights_converted_in_registers(native: Kernels, dtype: torch.dtype) -> None:
    """16-bit and 8-bit weights are multiplied in float32, and no row depends on others."""
    for shape in SHAPES:
        weight = torch.randint(-128, 128, shape, dtype=dtype) if dtype == torch.int8 else torch.randn(shape).to(dtype)
        scales, bias = (torch.rand(shape[0]) if dtype == torch.int8 else None), torch.randn(shape[0])
        stood_for = weight.double() * scales[:, None].double() if scales is not None else weight.double()
        for num_rows in ROWS:
            x = torch.randn(num_rows, shape[1])
            expected = x.double() @ stood_for.T + bias.double()
            for in_panels in (False, True):
                result = native.multiply_floats(x, weight, scales, bias, in_panels=in_panels)
                assert (result.double() - expected).norm() <= 1e-5 * expected.norm()
                alone = native.multiply_floats(x[-1:], weight, scales, bias, in_panels=in_panels)
                assert torch.equal(result[-1:], alone)


@needs_library
def test_float16_keeps_its_whole_range(native: Kernels) -> None:
    """The smallest, denormal, and the largest float16 are converted exactly."""
    weight = torch.tensor([[2.0**-24, -(2.0**-15), 65504.0, -0.0, 2.0**-14]], dtype=torch.float16).T.contiguous()
    for in_panels in (False, True):
        product = native.multiply_floats(torch.tensor([[0.5]]), weight, None, None, in_panels=in_panels)
        assert torch.equal(product, weight.float().T * 0.5)


def test_the_library_is_there_where_it_can_be_built() -> None:
    """On x86-64 Linux with a compiler, installing has built the library of the present sources."""
    if platform.machine() != "x86_64" or sys.platform != "linux" or not any(map(shutil.which, ("c++", "g++"))):
        pytest.skip("it cannot be built here")
    assert kernels() is not None, "run python quantizer/native/build.py: the sources have changed since the install"


def test_without_a_compiler_nothing_is_built(tmp_path: Path) -> None:
    """The build leaves the library out, without failing, where there is no compiler."""
    sources = shutil.copytree(Path(build.__file__).parent, tmp_path / "native", ignore=shutil.ignore_patterns("*.so"))
    bare = {"PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, sources / "build.py"], env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be built" in done.stdout
    assert not list(sources.glob("*.so"))


@pytest.mark.parametrize(
    ("variables", "newest"),
    [
        ({"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}, "sse4"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}, "avx2"),
        ({"ATEN_CPU_CAPABILITY": "default"}, "sse4"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "avx2"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}, "avxvnni"),
    ],
)
def test_what_limits_torch_limits_the_kernels(
    variables: dict[str, str], newest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing newer than the variables for torch and oneDNN allow is usable, and all that is older still is."""
    all_of_this_cpu = usable_instruction_sets()
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    names = tuple(build.INSTRUCTION_SETS)
    allowed = names[names.index(newest) :]
    assert usable_instruction_sets() == tuple(name for name in all_of_this_cpu if name in allowed)


@needs_library
def test_a_stage_of_an_older_class_uses_no_newer_kernels() -> None:
    """A process that is held to the class sse4, as a stage server is, multiplies by SSE4 alone."""
    program = (
        "from stage_server.cpu_class import restrict_cpu; restrict_cpu('sse4', ());"
        "from quantizer.native.library import kernels; print(kernels().instruction_set)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "sse4"
