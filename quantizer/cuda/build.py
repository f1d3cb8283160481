"""Whether Triton kernels can serve a weight on a CUDA device, and the layer if they can."""

import importlib.util

import torch

from llmpq.schemes import GROUP_SIZES, SCHEMES
from quantizer.cuda.chip import Chip, Kernel, supported_dtypes, supported_kernels
from quantizer.multi_path import MultiPathLinear
from quantizer.rounded import GroupRounded, RoundedWeight, RowRounded
from quantizer.tiles import ACTIVATION_GROUP_SIZE


def triton_linear(
    weight: RoundedWeight, bias: torch.Tensor | None, scheme: str, dtype: torch.dtype
) -> MultiPathLinear | None:
    """The layer that serves a weight on the CUDA device it is on, or None: then torch's own operators have to.

    Args:
        weight: (out, in).
        bias: (out,), of `dtype`, on the device, or None.
        scheme: Tells w8 from w8a8.
        dtype: Of the inputs.
    """
    if importlib.util.find_spec("triton") is None or not isinstance(weight, GroupRounded | RowRounded):
        return None
    chip = Chip.of(weight.codes.device)
    if not can_serve(weight, scheme, dtype, chip):
        return None
    from quantizer.cuda import linears  # noqa: PLC0415 needs Triton

    if isinstance(weight, GroupRounded):
        return linears.group_linear(weight, bias, chip)
    if not SCHEMES[scheme].has_int8_activations:
        return linears.int8_linear(weight, bias, chip)
    is_grouped = Kernel.INT8_PRODUCT in supported_kernels(chip.capability)
    return linears.rounding_linear(weight, bias, chip, ACTIVATION_GROUP_SIZE if is_grouped else 0)


def can_serve(weight: GroupRounded | RowRounded, scheme: str, dtype: torch.dtype, chip: Chip) -> bool:
    """Whether there are kernels for a weight, at a scheme and for inputs of a type, on a chip."""
    kernels = supported_kernels(chip.capability)
    if dtype not in supported_dtypes(chip.capability):
        return False
    if isinstance(weight, GroupRounded):
        return Kernel.FUSED in kernels and weight.group_size in GROUP_SIZES
    if not SCHEMES[scheme].has_int8_activations:
        return Kernel.FUSED in kernels
    return bool(kernels & {Kernel.INT8_PRODUCT, Kernel.INT8_CUBLAS})
