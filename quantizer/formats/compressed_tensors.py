"""The tensors of one linear in a compressed-tensors checkpoint, by their names behind that of the linear.

Its codes are signed, from -2**(bits - 1) on, and made unsigned again where they are packed, so that packed codes and
zero points are those of `GroupRounded`.
"""

from collections.abc import Mapping

import torch

from llmpq.formats import Layout, StoredLinear
from llmpq.schemes import SCHEMES
from quantizer.formats.words import num_words, pack_words, unpack_words
from quantizer.rounded import GroupRounded, RoundedWeight, RowRounded, SixteenBits

#: Turns int8 codes into those of uint8, and back: adds 128 modulo 256.
_SIGN_BIT = 128


def tensor_shapes(stored: StoredLinear, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that `from_tensors` takes and `to_tensors` makes, `weight_shape` left out."""
    bits, group_size = SCHEMES[stored.precision.scheme].weight_bits, stored.precision.group_size
    num_groups = -(-in_features // (group_size or in_features))
    shapes: dict[str, tuple[int, ...]] = {"weight_scale": (out_features, num_groups)}
    if stored.layout == Layout.INT8:
        return shapes | {"weight": (out_features, in_features)}
    shapes["weight_packed"] = (out_features, num_words(in_features, bits))
    if not stored.is_symmetric:
        shapes["weight_zero_point"] = (num_words(out_features, bits), num_groups)
    if stored.is_scattered:
        shapes["weight_g_idx"] = (in_features,)
    return shapes


def from_tensors(
    tensors: Mapping[str, torch.Tensor], stored: StoredLinear, in_features: int
) -> RowRounded | GroupRounded:
    """The weight that is stored, its codes untouched.

    Args:
        tensors: Of the names and shapes of `tensor_shapes`: int8 `weight`, int32 packed ones, scales in any float type
            (of groups: one that float16 holds).
        stored: How they are stored, not scattered.
        in_features: Columns of the weight.
    """
    scales = tensors["weight_scale"]
    if stored.layout == Layout.INT8:
        return RowRounded(tensors["weight"], scales.flatten().float())
    bits = SCHEMES[stored.precision.scheme].weight_bits
    codes = unpack_words(tensors["weight_packed"], bits, in_features)
    if stored.precision.scheme in {"w8", "w8a8"}:
        return RowRounded((codes ^ _SIGN_BIT).view(torch.int8), scales.flatten().float())
    if stored.is_symmetric:
        zeros = torch.full(scales.shape, 2 ** (bits - 1), dtype=torch.uint8)
    else:
        zeros = unpack_words(tensors["weight_zero_point"].t(), bits, len(scales)).t().contiguous()
    return GroupRounded(codes, scales.half(), zeros, bits, stored.precision.group_size)


def to_tensors(weight: RoundedWeight, stored: StoredLinear | None) -> dict[str, torch.Tensor]:
    """The tensors that stand for a weight: its codes, zero points and scales as they are.

    Args:
        weight: (out, in), on any device, not rotated.
        stored: How to store it; symmetric only if all its zero points are the middle code. None for 16 bits.

    Returns:
        `weight` for 16 bits; int8 `weight` and float32 `weight_scale` for `Layout.INT8`; otherwise int32
        `weight_packed`, `weight_zero_point` unless symmetric, `weight_scale` (rows float32, groups float16) and int64
        `weight_shape`.
    """
    if isinstance(weight, SixteenBits):
        return {"weight": weight.weight}
    if isinstance(weight, RowRounded):
        if weight.is_rotated:
            raise TypeError("The format has no weights whose inputs are rotated.")
        if stored is not None and stored.layout == Layout.INT8:
            return {"weight": weight.codes, "weight_scale": weight.scales[:, None]}
        bits, codes, scales = 8, weight.codes.view(torch.uint8) ^ _SIGN_BIT, weight.scales[:, None]
    else:
        bits, codes, scales = weight.bits, weight.codes, weight.scales
    tensors = {
        "weight_packed": pack_words(codes, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(weight.shape),
    }
    if isinstance(weight, GroupRounded) and not (stored is not None and stored.is_symmetric):
        tensors["weight_zero_point"] = pack_words(weight.zeros.t(), bits).t().contiguous()
    return tensors
