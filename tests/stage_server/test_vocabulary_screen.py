"""A screen finds the tokens that the exact head finds."""

import ctypes

import pytest
import torch

from quantizer.native import build
from quantizer.native.library import Kernels, kernels, usable_instruction_sets
from stage_server.vocabulary_screen import VocabularyScreen


@pytest.fixture(params=build.INSTRUCTION_SETS)
def native(request: pytest.FixtureRequest) -> Kernels:
    """The kernels of each instruction set."""
    if kernels() is None or request.param not in usable_instruction_sets():
        pytest.skip(f"there is no library here, or this CPU has no {request.param}")
    return Kernels(ctypes.CDLL(str(build.library_path())), request.param)


@pytest.mark.parametrize("shape", [(4096, 64), (5000, 100), (777, 576), (50, 32)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_most_likely_token_is_that_of_the_exact_head(
    native: Kernels, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """Of logits near and far from each other, and of rows of very unlike size, the largest exact one is found."""
    torch.manual_seed(shape[0])
    vocabulary = (torch.randn(shape) * torch.rand(shape[0], 1).mul(3).exp()).to(dtype)
    screen = VocabularyScreen(vocabulary, native)
    near_a_token = vocabulary[torch.randint(shape[0], (40,))].float() + torch.randn(40, shape[1]) * 0.3
    for x in (torch.randn(40, shape[1]), near_a_token, near_a_token * 1e4):
        exact = x.double() @ vocabulary.double().T
        found = exact.gather(1, screen.most_likely(x)[:, None])[:, 0]
        # Within the rounding of float32 two tokens may be as likely.
        assert (found >= exact.amax(dim=1) - 1e-5 * exact.abs().amax(dim=1)).all()


def test_tokens_that_8_bits_cannot_tell_apart_are_told_apart(native: Kernels) -> None:
    """The largest is found among hundreds of rows that are equal in 8 bits, the lowest among those equal in 16."""
    base = torch.linspace(-1, 1, 64)
    vocabulary = base.repeat(300, 1)
    vocabulary[:, 0] = -0.999
    vocabulary[[123, 200], 0] = -1.0
    screen = VocabularyScreen(vocabulary.half(), native)
    x = torch.zeros(2, 64)
    x[:, 0], x[0, 63] = -1.0, 0.5
    assert screen.most_likely(x).tolist() == [123, 123]


def test_a_row_does_not_depend_on_its_company(native: Kernels) -> None:
    """A row finds the same token alone and beside rows of NaN and infinity, which find one that exists."""
    torch.manual_seed(1)
    screen = VocabularyScreen(torch.randn(1000, 96).half(), native)
    x = torch.randn(5, 96)
    alone = torch.cat([screen.most_likely(row[None]) for row in x])
    x = torch.cat((x, torch.full((1, 96), torch.nan), torch.full((1, 96), torch.inf)))
    together = screen.most_likely(x)
    assert together[:5].equal(alone)
    assert ((together >= 0) & (together < 1000)).all()


@pytest.mark.parametrize("scale", [1e-28, 1e-25, 1.0, 1e19])
def test_the_answer_hangs_neither_on_size_nor_on_outliers(native: Kernels, scale: float) -> None:
    """Of tiny and huge states, those with a channel far above the others, and small vocabularies, on two threads."""
    torch.manual_seed(7)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for shape in ((3, 65), (1003, 65), (200, 128)):
            vocabulary = torch.randn(shape).bfloat16()
            vocabulary[-1] = 0
            x = torch.randn(24, shape[1])
            x[::2, 3] = 500
            exact = x.double() @ vocabulary.double().T
            found = VocabularyScreen(vocabulary, native).most_likely(x * scale)
            top = exact.topk(2, dim=1)
            is_clear = top.values[:, 0] - top.values[:, 1] > 1e-4 * top.values[:, 0].abs()
            assert is_clear.any()
            assert found[is_clear].equal(top.indices[is_clear, 0])
    finally:
        torch.set_num_threads(before)
