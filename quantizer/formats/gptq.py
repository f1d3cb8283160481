"""The tensors of one linear in a GPTQ checkpoint, by their names behind that of the linear: transposed to ours."""

from collections.abc import Mapping

import torch

from llmpq.formats import Layout, StoredLinear
from llmpq.schemes import SCHEMES
from quantizer.formats.words import num_words, unpack_words
from quantizer.rounded import GroupRounded


def tensor_shapes(stored: StoredLinear, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a linear; `g_idx` may be absent where groups are not scattered."""
    bits, group_size = SCHEMES[stored.precision.scheme].weight_bits, stored.precision.group_size
    num_groups = -(-in_features // (group_size or in_features))
    return {
        "qweight": (num_words(in_features, bits), out_features),
        "qzeros": (num_groups, num_words(out_features, bits)),
        "scales": (num_groups, out_features),
        "g_idx": (in_features,),
    }


def from_tensors(tensors: Mapping[str, torch.Tensor], stored: StoredLinear, in_features: int) -> GroupRounded:
    """The weight that is stored, its codes untouched, also that of 8 bits as codes from 0 on.

    A zero point less 1 is stored modulo 2**bits, so that of 0 is the largest code.

    Args:
        tensors: int32 `qweight` and `qzeros`, `scales` in a float type whose values float16 holds; shapes as
            `tensor_shapes` says.
        stored: How they are stored, not scattered.
        in_features: Columns of the weight.
    """
    bits = SCHEMES[stored.precision.scheme].weight_bits
    codes = unpack_words(tensors["qweight"].t(), bits, in_features)
    zeros = unpack_words(tensors["qzeros"], bits, tensors["scales"].shape[1]).t()
    if stored.layout == Layout.GPTQ_1:
        zeros = zeros + 1 & 2**bits - 1
    scales = tensors["scales"].t().contiguous().half()
    return GroupRounded(codes, scales, zeros.contiguous(), bits, stored.precision.group_size)
