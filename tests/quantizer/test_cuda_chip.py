"""What runs on which CUDA chip."""

import pytest
import torch

from quantizer.cuda.build import can_serve, triton_linear
from quantizer.cuda.chip import Chip, Kernel, supported_dtypes, supported_kernels
from quantizer.rounded import SixteenBits
from quantizer.rounding import round_groups, round_rows

PASCAL, VOLTA, TURING, AMPERE, ADA, HOPPER, BLACKWELL = (6, 1), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (12, 0)


@pytest.mark.parametrize("capability", [AMPERE, (8, 6), ADA, HOPPER, (10, 0), BLACKWELL])
def test_everything_runs_from_ampere_on(capability: tuple[int, int]) -> None:
    """From 8.0 on every kernel runs, in both 16-bit types."""
    assert supported_kernels(capability) == set(Kernel)
    assert supported_dtypes(capability) == {torch.float16, torch.bfloat16}


@pytest.mark.parametrize(
    ("capability", "missing"),
    [
        (TURING, {Kernel.INT8_PRODUCT}),
        ((7, 2), {Kernel.INT8_PRODUCT, Kernel.INT8_CUBLAS, Kernel.ROUND_TOKENS}),
        (VOLTA, {Kernel.INT8_PRODUCT, Kernel.INT8_CUBLAS, Kernel.ROUND_TOKENS}),
        (PASCAL, set(Kernel)),
        ((3, 5), set(Kernel)),
    ],
)
def test_older_chips_lack_kernels(capability: tuple[int, int], missing: set[Kernel]) -> None:
    """7.5 has no int8 product but cuBLAS's, 7.0 none at all, 6.x nothing; none of them has bfloat16."""
    assert supported_kernels(capability) == set(Kernel) - missing
    assert supported_dtypes(capability) == {torch.float16}


def test_only_from_ampere_on_triton_uses_tensor_cores() -> None:
    """Triton's products run on tensor cores from 8.0 on."""
    assert [Chip(capability, 1).has_tensor_cores for capability in (VOLTA, TURING, AMPERE, HOPPER)] == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("scheme", "capability", "dtype", "is_served"),
    [
        ("w4", VOLTA, torch.float16, True),
        ("w4", VOLTA, torch.bfloat16, False),
        ("w4", AMPERE, torch.bfloat16, True),
        ("w4", AMPERE, torch.float32, False),
        ("w4", PASCAL, torch.float16, False),
        ("w8", VOLTA, torch.float16, True),
        ("w8", PASCAL, torch.float16, False),
        ("w8a8", VOLTA, torch.float16, False),
        ("w8a8", TURING, torch.float16, True),
        ("w8a8", HOPPER, torch.bfloat16, True),
    ],
)
def test_a_layer_is_served_where_its_kernels_run(
    scheme: str, capability: tuple[int, int], dtype: torch.dtype, *, is_served: bool
) -> None:
    """Kernels serve a scheme and a type on chips that have what it takes; else torch's operators do."""
    weight = round_groups(torch.randn(4, 64), 4, 32) if scheme == "w4" else round_rows(torch.randn(4, 64))
    assert can_serve(weight, scheme, dtype, Chip(capability, 1)) == is_served


def test_unusual_groups_are_left_to_torch() -> None:
    """Kernels unpack groups of 32, 64 and 128, and whole channels; a checkpoint may have others."""
    served = [
        can_serve(round_groups(torch.randn(4, 512), 4, size), "w4", torch.float16, Chip(HOPPER, 1))
        for size in (0, 32, 64, 128, 16, 48, 256)
    ]
    assert served == [True, True, True, True, False, False, False]


def test_without_triton_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight is served by kernels where Triton is not installed; the device is not even looked at."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert triton_linear(round_rows(torch.randn(4, 64)), None, "w8", torch.float16) is None


def test_sixteen_bits_are_left_to_torch() -> None:
    """w16 is cuBLAS's own."""
    assert triton_linear(SixteenBits(torch.randn(4, 64).half()), None, "w16", torch.float16) is None
