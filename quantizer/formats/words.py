"""Values of a few bits in 32-bit words, as compressed-tensors and GPTQ have them.

The bits of a row's values follow each other, least significant first, and are cut into words: value i begins at bit
i * bits of its row. Seen as bytes (hosts are little-endian, as safetensors files are), 8 values take exactly as many
bytes as a value has bits, and a value of 3 bits may straddle two.
"""

import torch
from torch.nn import functional

_WORD_BITS = 32


def num_words(num_values: int, bits: int) -> int:
    """Words that hold a row of so many values."""
    return -(-num_values * bits // _WORD_BITS)


def pack_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs whole numbers from 0 to 2**bits - 1, uint8 (rows, n), to int32 (rows, `num_words`)."""
    runs = functional.pad(values, (0, -values.shape[1] % _WORD_BITS)).view(len(values), -1, 8)
    stream = runs.new_zeros(*runs.shape[:2], bits)
    for position in range(8):
        byte, shift = divmod(position * bits, 8)
        stream[..., byte] |= runs[..., position] << shift  # what leaves the byte at its upper end is dropped
        if shift + bits > 8:  # noqa: PLR2004 bits of a byte
            stream[..., byte + 1] |= runs[..., position] >> (8 - shift)
    return stream.flatten(1).view(torch.int32)[:, : num_words(values.shape[1], bits)].contiguous()


def unpack_words(words: torch.Tensor, bits: int, num_values: int) -> torch.Tensor:
    """Undoes `pack_words`.

    Args:
        words: int32 (rows, `num_words`).
        bits: Of a value, at most 8.
        num_values: Values of a row.

    Returns:
        uint8 (rows, num_values).
    """
    stream = words.contiguous().view(torch.uint8)
    runs = functional.pad(stream, (0, -stream.shape[1] % bits)).view(len(stream), -1, bits)
    values = runs.new_empty(*runs.shape[:2], 8)
    for position in range(8):
        byte, shift = divmod(position * bits, 8)
        value = runs[..., byte] >> shift
        if shift + bits > 8:  # noqa: PLR2004
            value |= runs[..., byte + 1] << (8 - shift)
        values[..., position] = value & 2**bits - 1
    return values.flatten(1)[:, :num_values].contiguous()
