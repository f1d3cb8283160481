"""From a rounded weight to a linear layer: which class serves a scheme on a device is chosen here.

`quantizer.methods.round_weight` makes the rounded weight; checkpoints and caches hold it too.
"""

from dataclasses import replace

import torch

from llmpq.errors import InvalidInputError
from llmpq.schemes import GROUP_SIZES, SCHEMES
from quantizer.cuda.build import triton_linear
from quantizer.dynamic_int8 import DynamicInt8Linear, SimulatedInt8Linear
from quantizer.multi_path import MultiPathLinear
from quantizer.native.library import Kernels, kernels
from quantizer.native_linear import NativeLinear
from quantizer.quantized_linear import QuantizedLinear
from quantizer.rotated_linear import RotatedLinear
from quantizer.rounded import GroupRounded, RoundedWeight, RowRounded, SixteenBits
from quantizer.weight_only import Int8Linear, PackedLinear, SixteenBitLinear

__all__ = ["QuantizedLinear", "build_linear", "supported_schemes"]


def supported_schemes(device: torch.device) -> tuple[str, ...]:
    """Names of the schemes that `build_linear` serves on a device, from the most to the least exact.

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


def build_linear(
    weight: RoundedWeight, bias: torch.Tensor | None, scheme: str, *, compute_dtype: torch.dtype
) -> QuantizedLinear:
    """The linear layer that serves a weight at its scheme, on the device that the weight is on.

    Where a scheme can be multiplied in several ways, the first layer of a shape also finds out which is the fastest.

    Args:
        weight: (out, in), rounded for the scheme.
        bias: (out,), any float type, on any device, or None.
        scheme: Tells w8 from w8a8, whose weights are stored alike.
        compute_dtype: Type of the inputs it will be given.
    """
    device = _device_of(weight)
    supported_schemes(device)
    if isinstance(weight, RowRounded) and weight.is_rotated and _native_kernels(device) is None:
        plain = replace(weight, is_rotated=False)
        return RotatedLinear(build_linear(plain, bias, scheme, compute_dtype=compute_dtype))
    bias = bias.detach().to(device, compute_dtype) if bias is not None else None
    by_triton = triton_linear(weight, bias, scheme, compute_dtype) if device.type == "cuda" else None
    layer = by_triton or _layer_of(weight, bias, scheme, compute_dtype)
    if isinstance(layer, MultiPathLinear):
        layer.choose_paths(device, compute_dtype)
    return layer


def _layer_of(
    weight: RoundedWeight, bias: torch.Tensor | None, scheme: str, compute_dtype: torch.dtype
) -> QuantizedLinear:
    device = _device_of(weight)
    if isinstance(weight, SixteenBits):
        # Of two types of 16 bits it is the one computed in, so that the weight is not converted for every product.
        is_narrow = compute_dtype.itemsize == weight.weight.itemsize
        return SixteenBitLinear(weight.weight.to(compute_dtype) if is_narrow else weight.weight, bias)
    if isinstance(weight, RowRounded) and not SCHEMES[scheme].has_int8_activations:
        return Int8Linear(weight, bias)
    native = _native_kernels(device)
    if native is not None and (isinstance(weight, RowRounded) or weight.group_size in GROUP_SIZES):
        return NativeLinear(weight, bias, native)
    if isinstance(weight, GroupRounded):
        return PackedLinear(weight, bias)
    return (DynamicInt8Linear if device.type == "cpu" else SimulatedInt8Linear)(weight, bias)


def _native_kernels(device: torch.device) -> Kernels | None:
    return kernels() if device.type == "cpu" else None


def _device_of(weight: RoundedWeight) -> torch.device:
    return weight.weight.device if isinstance(weight, SixteenBits) else weight.codes.device
