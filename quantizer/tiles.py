"""Weights as the native kernels read them; `native/packed.h` says why so.

Codes are packed densely in tiles of 16 outputs and blocks of 32 inputs; what is over is zero.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from quantizer.rotation import ROTATED_INPUTS, rotate
from quantizer.rounded import GroupRounded, RowRounded, dequantize_groups_

#: Neighbouring activations that are rounded together where the weights do not say: those of one scale per output.
ACTIVATION_GROUP_SIZE = ROTATED_INPUTS

#: Outputs of a tile.
TILE_OUTPUTS = 16

_BLOCK, _STEPS, _STEP_INPUTS = 32, 8, 4


@dataclass(frozen=True)
class TiledWeight:
    """A rounded weight in tiles, which is the only copy of it.

    Attributes:
        shape: (out, in).
        bits: 8, 4 or 3. With 8 bits a weight is (code - 128) * scale, else (code - zero) * scale.
        codes: uint8 (tiles, blocks, bits, 64), as of `pack_tiles`.
        scales: (tiles, groups, 16), float32 if 8 bits, else float16.
        zeros: uint8 (tiles, groups, 16), or None if 8 bits.
        group_size: Inputs of a group of weights; 0 is all.
        is_rotated: As in RowRounded.
    """

    shape: torch.Size
    bits: int
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    group_size: int
    is_rotated: bool = False

    @classmethod
    def of(cls, rounded: RowRounded | GroupRounded) -> "TiledWeight":
        """Packs a rounded weight."""
        if isinstance(rounded, RowRounded):
            codes = pack_tiles(rounded.codes.view(torch.uint8) ^ 128, 8)
            return cls(rounded.shape, 8, codes, tile_groups(rounded.scales[:, None]), None, 0, rounded.is_rotated)
        codes, scales, zeros = (
            pack_tiles(rounded.codes, rounded.bits),
            tile_groups(rounded.scales),
            tile_groups(rounded.zeros),
        )
        return cls(rounded.shape, rounded.bits, codes, scales, zeros, rounded.group_size)

    @property
    def activation_group_size(self) -> int:
        """Neighbouring activations that share a scale: as many as weights do, if these have groups."""
        return self.group_size or ACTIVATION_GROUP_SIZE

    @property
    def num_groups(self) -> int:
        """Groups of weights."""
        return self.scales.shape[1]

    @property
    def work_bytes(self) -> int:
        """Bytes that a kernel needs for the rounded activations of a row: codes, scales and sums."""
        padded_inputs = self.codes.shape[1] * _BLOCK
        return padded_inputs + 8 * -(-padded_inputs // self.activation_group_size)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return self.codes.nbytes + self.scales.nbytes + (self.zeros.nbytes if self.zeros is not None else 0)

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, float32 (out, in)."""
        codes = unpack_tiles(self.codes, self.bits, self.shape).float()
        scales = untile_groups(self.scales, self.shape[0])
        if self.zeros is None:
            weight: torch.Tensor = codes.sub_(128).mul_(scales)
            return rotate(weight) if self.is_rotated else weight
        return dequantize_groups_(codes, scales, untile_groups(self.zeros, self.shape[0]), self.group_size)


def pack_tiles(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs the codes of a weight.

    Args:
        codes: uint8 (out, in), each below 2**bits.
        bits: 8, 4 or 3.

    Returns:
        uint8 (tiles, blocks, bits, 64).
    """
    out_features, in_features = codes.shape
    padded = functional.pad(codes, (0, -in_features % _BLOCK, 0, -out_features % TILE_OUTPUTS))
    # Four neighbouring inputs move as one.
    outputs = padded.view(torch.int32).view(-1, TILE_OUTPUTS, padded.shape[1] // _BLOCK, _STEPS)
    steps = outputs.permute(0, 2, 3, 1).contiguous().view(torch.uint8)
    return {8: _as_it_is, 4: _pack_4, 3: _pack_3}[bits](steps)


def unpack_tiles(packed: torch.Tensor, bits: int, shape: torch.Size) -> torch.Tensor:
    """Undoes `pack_tiles`: uint8 codes of shape (out, in)."""
    steps = {8: _as_it_is, 4: _unpack_4, 3: _unpack_3}[bits](packed)
    num_tiles, num_blocks = packed.shape[:2]
    outputs = steps.view(torch.int32).permute(0, 3, 1, 2).contiguous().view(torch.uint8)
    return outputs.view(num_tiles * TILE_OUTPUTS, num_blocks * _BLOCK)[: shape[0], : shape[1]]


def tile_groups(values: torch.Tensor) -> torch.Tensor:
    """Lays out scales or zero points (out, groups) as (tiles, groups, 16)."""
    padded = functional.pad(values, (0, 0, 0, -values.shape[0] % TILE_OUTPUTS))
    return padded.view(-1, TILE_OUTPUTS, values.shape[1]).transpose(1, 2).contiguous()


def untile_groups(tiled: torch.Tensor, out_features: int) -> torch.Tensor:
    """Undoes `tile_groups`."""
    return tiled.transpose(1, 2).flatten(0, 1)[:out_features]


def _as_it_is(steps: torch.Tensor) -> torch.Tensor:
    return steps


def _pack_4(steps: torch.Tensor) -> torch.Tensor:
    return steps[:, :, 0::2] | steps[:, :, 1::2] << 4


def _unpack_4(packed: torch.Tensor) -> torch.Tensor:
    return torch.stack((packed & 15, packed >> 4), dim=3).flatten(2, 3)


def _pack_3(steps: torch.Tensor) -> torch.Tensor:
    lower, upper = steps & 3, steps >> 2
    quads = lower.view(*lower.shape[:2], 2, 4, lower.shape[3])
    planes = quads[:, :, :, 0] | quads[:, :, :, 1] << 2 | quads[:, :, :, 2] << 4 | quads[:, :, :, 3] << 6
    last = torch.zeros_like(upper[:, :, 0])
    for step in range(_STEPS):
        last |= upper[:, :, step] << step
    return torch.cat((planes, last.unsqueeze(2)), dim=2)


def _unpack_3(packed: torch.Tensor) -> torch.Tensor:
    lower = [packed[:, :, step // 4] >> step % 4 * 2 & 3 for step in range(_STEPS)]
    upper = [(packed[:, :, 2] >> step & 1) << 2 for step in range(_STEPS)]
    return torch.stack([low | high for low, high in zip(lower, upper, strict=True)], dim=2)
