"""Codes as tensor cores read them."""

import pytest
import torch

from quantizer.cuda.fragments import from_fragments, to_fragments

SHAPES = ((16, 128), (64, 256), (37, 91), (5, 200), (1, 1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [4, 3])
def test_packing_loses_nothing(bits: int, shape: tuple[int, int]) -> None:
    """Unpacking gives back every code of any shape."""
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    assert torch.equal(from_fragments(to_fragments(codes, bits), bits, shape), codes)


@pytest.mark.parametrize("bits", [4, 3])
def test_whole_tiles_take_no_more_than_their_bits(bits: int) -> None:
    """Where rows are a multiple of 16 and columns of 128, a code takes its bits and nothing else is stored."""
    codes = torch.zeros(48, 384, dtype=torch.uint8)
    assert to_fragments(codes, bits).nbytes == 48 * 384 * bits // 8


@pytest.mark.parametrize("bits", [4, 3])
def test_every_code_is_where_the_kernels_look(bits: int) -> None:
    """Row, column and position in the words are related as the module says."""
    shape = (21, 261)
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    fragments = to_fragments(codes, bits)
    for row in range(shape[0]):
        for column in range(0, shape[1], 3):
            assert _code_at(fragments, bits, row, column) == codes[row, column]


def _code_at(fragments: torch.Tensor, bits: int, row: int, column: int) -> int:
    span, in_span = divmod(column, 128)
    chunk, in_chunk = divmod(in_span, 32)
    lane_column, in_lane = divmod(in_chunk, 8)
    pair, half_word = divmod(in_lane, 2)
    tile, in_tile = divmod(row, 16)
    row_half, lane_row = divmod(in_tile, 8)
    lane = 32 * tile + 4 * lane_row + lane_column
    if bits == 4:
        number, word, per_plane = 2 * chunk + row_half, pair, 4
    else:
        number, word, per_plane = 4 * chunk + 2 * row_half + pair // 2, pair % 2, 5
    words = [int(fragments[span, plane, lane, word]) >> 16 * half_word & 0xFFFF for plane in range(fragments.shape[1])]
    if bits == 3 and number == 15:
        return sum((plane >> 15) << bit for bit, plane in enumerate(words))
    plane, position = divmod(number, per_plane)
    return words[plane] >> bits * position & (1 << bits) - 1
