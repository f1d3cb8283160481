"""Storage of 4-bit and 3-bit codes for tensor cores: what a thread multiplies lies together.

A warp's tensor-core instruction takes 16 output channels (rows) and, in two steps, 32 input channels (columns). Lane
`4 * r + t` of the warp holds rows r and r + 8, columns 8 * t to 8 * t + 7. Stored here is, for every span of 128
columns and every tile of 16 rows, what each of the 32 lanes needs of it: 64 codes. So loads are contiguous from lane to
lane, and codes need not change lanes after they are unpacked.

Codes of neighbouring columns lie in the two halves of an int32 at the same bit. One operation on the word then unpacks
both, and leaves them where a tensor core wants a pair of 16-bit numbers.

A lane's words are stored in planes, all lanes of all tiles after each other in each:

- 4 bits: two planes of four words; a half word holds 8 codes, four in each plane. Code q of word i: chunk of columns
  `q // 2`, row half `q % 2`, column pair i of the lane's four in the chunk.
- 3 bits: three planes of two words; a half word holds 16 codes, five in each plane and the last in the planes' three
  spare bits. Code q of word i: chunk `q // 4`, row half `q // 2 % 2`, column pair `2 * (q % 2) + i`.
"""

import torch
from torch.nn import functional

#: Input channels that are stored, and multiplied, together.
SPAN = 128
#: Output channels of a tile.
TILE_ROWS = 16
#: Lanes of a warp, as rows and columns of a tile.
_LANE_ROWS, _LANE_COLUMNS = 8, 4
#: Codes of a half word in one plane of 3-bit storage.
_CODES_3 = 5


def to_fragments(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs codes.

    Args:
        codes: uint8 (out, in), each below 2**bits.
        bits: 4 or 3.

    Returns:
        int32 (spans, planes, lanes, words) with 2 lanes for each output channel, filled up to 16; what is over is 0.
    """
    out_features, in_features = codes.shape
    padded = functional.pad(codes, (0, -in_features % SPAN, 0, -out_features % TILE_ROWS)).int()
    # tile, row half, row, span, chunk, column, pair of columns (of 4), half word
    split = padded.view(-1, 2, _LANE_ROWS, padded.shape[1] // SPAN, 4, _LANE_COLUMNS, 4, 2)
    words = split[..., 0] | split[..., 1] << 16
    packed = _pack_4(words) if bits == 4 else _pack_3(words)  # noqa: PLR2004 bits
    return packed.contiguous()


def from_fragments(fragments: torch.Tensor, bits: int, shape: tuple[int, int]) -> torch.Tensor:
    """Undoes `to_fragments`: uint8 codes of a `shape`, (out, in)."""
    words = _unpack_4(fragments) if bits == 4 else _unpack_3(fragments)  # noqa: PLR2004 bits
    split = torch.stack((words, words >> 16), dim=-1) & (1 << bits) - 1
    num_tiles, num_spans = split.shape[0], split.shape[3]
    codes = split.reshape(num_tiles * TILE_ROWS, num_spans * SPAN)
    return codes[: shape[0], : shape[1]].to(torch.uint8)


def _pack_4(words: torch.Tensor) -> torch.Tensor:
    num_tiles, num_spans = words.shape[0], words.shape[3]
    codes = words.permute(3, 0, 2, 5, 6, 4, 1).reshape(num_spans, num_tiles * 32, 4, 2, 4)
    packed = codes[..., 0]
    for j in range(1, 4):
        packed = packed | codes[..., j] << 4 * j
    return packed.permute(0, 3, 1, 2)


def _unpack_4(fragments: torch.Tensor) -> torch.Tensor:
    codes = torch.stack([fragments >> 4 * j for j in range(4)], dim=-1)
    split = codes.view(len(fragments), 2, -1, _LANE_ROWS, _LANE_COLUMNS, 4, 2, 2)
    return split.permute(2, 7, 3, 0, 1, 6, 4, 5).flatten(4, 5)


def _pack_3(words: torch.Tensor) -> torch.Tensor:
    num_tiles, num_spans = words.shape[0], words.shape[3]
    # pair of columns becomes high bit (of the code's number) and word; the codes go last
    split = words.view(*words.shape[:6], 2, 2)
    codes = split.permute(3, 0, 2, 5, 7, 4, 1, 6).reshape(num_spans, num_tiles * 32, 2, 16)
    last = codes[..., 15]
    planes = []
    for plane in range(3):
        packed = (last >> plane & 0x00010001) << 15
        for j in range(_CODES_3):
            packed = packed | codes[..., plane * _CODES_3 + j] << 3 * j
        planes.append(packed)
    return torch.stack(planes, dim=1)


def _unpack_3(fragments: torch.Tensor) -> torch.Tensor:
    planes = fragments.unbind(1)
    codes = [planes[q // _CODES_3] >> 3 * (q % _CODES_3) for q in range(15)]
    spare = [(plane >> 15 & 0x00010001) << bit for bit, plane in enumerate(planes)]
    codes.append(spare[0] | spare[1] | spare[2])
    split = torch.stack(codes, dim=-1).view(len(fragments), -1, _LANE_ROWS, _LANE_COLUMNS, 2, 4, 2, 2)
    return split.permute(1, 6, 2, 0, 5, 3, 7, 4).flatten(6, 7)
