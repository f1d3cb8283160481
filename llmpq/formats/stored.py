"""How a linear lies in a quantized checkpoint, and which of llmpq's precisions that is."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from llmpq.errors import InvalidInputError
from llmpq.plan import LayerPrecision
from llmpq.schemes import GROUP_SIZES, SCHEMES


class Layout(StrEnum):
    """Which tensors hold a weight, and how."""

    PACKED = "pack-quantized"
    """compressed-tensors: `weight_packed`, `weight_scale`, and `weight_zero_point` unless symmetric."""
    INT8 = "int-quantized"
    """compressed-tensors: an int8 `weight` and `weight_scale`."""
    GPTQ_1 = "gptq"
    """`qweight`, `qzeros`, `scales`, and mostly `g_idx`, packed along the inputs; zero points are stored less 1."""
    GPTQ_2 = "gptq_v2"
    """The same with zero points as they are."""


@dataclass(frozen=True)
class StoredLinear:
    """How a linear is stored.

    Attributes:
        layout: Its tensors.
        precision: What that comes to.
        is_symmetric: Whether every zero point is the middle code.
        is_scattered: Whether the input channels of a group lie apart; `g_idx` then says which are whose.
    """

    layout: Layout
    precision: LayerPrecision
    is_symmetric: bool = True
    is_scattered: bool = False


class Quantization(Protocol):
    """A quantized checkpoint's configuration, read."""

    def of(self, module: str) -> StoredLinear | None:
        """How the linear of this name is stored; None if as plain floats.

        Raises:
            InvalidInputError: In a way that llmpq has no precision for; names where the configuration says so.
        """


def stored_precision(
    bits: int, group_size: int, *, is_symmetric: bool, has_int8_activations: bool, where: str
) -> LayerPrecision:
    """The precision that holds such weights as they are.

    Args:
        bits: Of a weight.
        group_size: Input channels that share a scale; 0 is all of them.
        is_symmetric: Whether every zero point is the middle code.
        has_int8_activations: Whether activations are to be rounded to int8, per token.
        where: Part of the configuration, for errors.

    Raises:
        InvalidInputError: There is none.
    """
    if bits == SCHEMES["w8"].weight_bits and group_size == 0 and is_symmetric:
        return LayerPrecision("w8a8" if has_int8_activations else "w8")
    if bits in {3, 4} and group_size in GROUP_SIZES and not has_int8_activations:
        return LayerPrecision(f"w{bits}", group_size)
    groups = f"in groups of {group_size}" if group_size else "per channel"
    activations = ", with 8-bit activations" if has_int8_activations else ""
    asymmetric = "" if is_symmetric else ", asymmetric"
    raise unsupported(where, f"weights of {bits} bits {groups}{asymmetric}{activations}")


def unsupported(where: str, what: str) -> InvalidInputError:
    """The error for something stored that no precision of llmpq holds."""
    sizes = ", ".join(str(size) for size in GROUP_SIZES if size)
    return InvalidInputError(
        f"Cannot serve the model as it is stored: {where} says {what}. What can be served is int8 per channel and "
        f"symmetric, with or without dynamic int8 activations per token, and 3 or 4 bits per channel or in groups of "
        f"{sizes}. "
        "Take the model that was not quantized: llmpq quantizes it as it loads.",
        reason="UNSUPPORTED_QUANTIZATION",
        subject=where,
    )


def check_patterns(patterns: Iterable[str], where: str) -> None:
    """Raises InvalidInputError for a regular expression that is none."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise unsupported(where, f"the pattern '{pattern}', which is none ({error})") from error
