"""From a weight matrix and a precision to a linear layer: the entrance to this library.

Which class, and so which kernel, serves a scheme on a device is chosen here and nowhere else.
"""

import torch

from llmpq.errors import InvalidInputError
from llmpq.plan import LayerPrecision
from llmpq.schemes import GROUP_SIZES, SCHEMES
from quantizer.dynamic_int8 import DynamicInt8Linear, SimulatedInt8Linear
from quantizer.quantized_linear import QuantizedLinear
from quantizer.rounding import round_groups, round_rows
from quantizer.weight_only import Int8Linear, PackedLinear, SixteenBitLinear

__all__ = ["QuantizedLinear", "quantize_linear", "supported_schemes", "to_sixteen_bits"]


def supported_schemes(device: torch.device) -> tuple[str, ...]:
    """Names of the schemes that `quantize_linear` makes for a device, from the most to the least exact.

    Raises:
        InvalidInputError: A kind of device that is not known.
    """
    if device.type not in {"cpu", "cuda"}:
        raise InvalidInputError(
            f"Cannot compute on device '{device}': known kinds are cpu and cuda.",
            reason="UNKNOWN_DEVICE",
            subject="device",
        )
    return tuple(SCHEMES)


def quantize_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    precision: LayerPrecision,
    *,
    device: torch.device,
    compute_dtype: torch.dtype,
) -> QuantizedLinear:
    """Stores a weight matrix at a precision, rounded to the nearest.

    Matrices that read the same input may be stacked along the output axis first: no scale reaches across output
    channels, so the result is the same.

    Args:
        weight: (out, in), any float type, on any device.
        bias: (out,), likewise, or None.
        precision: The scheme, and the group size of schemes that have groups.
        device: Where it is to be held and computed.
        compute_dtype: Type of the inputs it will be given.

    Raises:
        InvalidInputError: An unknown scheme, group size or device, or a weight that is no finite matrix of floats.
    """
    _check_precision(precision, supported_schemes(device))
    _check_weight(weight)
    weight = weight.detach().to(device).contiguous()
    bias = bias.detach().to(device, compute_dtype) if bias is not None else None
    scheme = SCHEMES[precision.scheme]
    if scheme.name == "w16":
        return SixteenBitLinear(to_sixteen_bits(weight), bias)
    if scheme.is_grouped:
        return PackedLinear(round_groups(weight, scheme.weight_bits, precision.group_size), bias)
    if not scheme.has_int8_activations:
        return Int8Linear(round_rows(weight), bias)
    return (DynamicInt8Linear if device.type == "cpu" else SimulatedInt8Linear)(round_rows(weight), bias)


def to_sixteen_bits(weight: torch.Tensor) -> torch.Tensor:
    """bf16 and fp16 as they are; wider types as fp16, or as bf16 if fp16 cannot hold their range."""
    if weight.dtype in {torch.float16, torch.bfloat16}:
        return weight
    is_in_range = weight.abs().amax() <= torch.finfo(torch.float16).max
    return weight.to(torch.float16 if is_in_range else torch.bfloat16)


def _check_precision(precision: LayerPrecision, schemes: tuple[str, ...]) -> None:
    if precision.scheme not in schemes:
        raise InvalidInputError(
            f"Unknown scheme '{precision.scheme}': there are {', '.join(schemes)}.",
            reason="UNKNOWN_SCHEME",
            subject="scheme",
        )
    if precision.group_size not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise InvalidInputError(
            f"Unknown group size {precision.group_size}: there are {sizes}; 0 is one group per output channel.",
            reason="UNKNOWN_GROUP_SIZE",
            subject="group_size",
        )


def _check_weight(weight: torch.Tensor) -> None:
    if weight.ndim != 2 or weight.numel() == 0 or not weight.is_floating_point():  # noqa: PLR2004 a matrix
        raise InvalidInputError(
            f"A weight must be a matrix of floats (out, in), not {weight.dtype} of shape {tuple(weight.shape)}.",
            reason="BAD_WEIGHT",
            subject="weight",
        )
    if not weight.isfinite().all():
        raise InvalidInputError(
            f"The weight of shape {tuple(weight.shape)} holds NaN or infinity: the checkpoint is damaged.",
            reason="BAD_WEIGHT",
            subject="weight",
        )
