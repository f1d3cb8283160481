"""From a float weight to a rounded one, by any method."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from llmpq.errors import InvalidInputError
from llmpq.plan import NEAREST, ROUNDING_METHODS, LayerPrecision, Rounding
from llmpq.schemes import GROUP_SIZES, SCHEMES
from quantizer.blocks import blocks_of_rows
from quantizer.calibrated import round_calibrated
from quantizer.finite import is_all_finite
from quantizer.hqq import fit_half_quadratic
from quantizer.input_statistics import InputStatistics
from quantizer.rotation import can_rotate, rotate
from quantizer.rounded import RoundedWeight, RowRounded, SixteenBits, stack
from quantizer.rounding import round_groups, round_rows, search_clipping


def round_weight(
    weight: torch.Tensor,
    precision: LayerPrecision,
    rounding: Rounding = NEAREST,
    inputs: InputStatistics | None = None,
) -> RoundedWeight:
    """Rounds a weight matrix to a precision.

    A weight of w8a8 is rounded with its columns rotated, as its inputs will be, where these are whole groups and the
    rounding does not forbid it.

    Matrices that read the same input may be stacked along the output axis first: no scale reaches across output
    channels, so the result is the same.

    Args:
        weight: (out, in), any float type, on the device that is to do the work.
        precision: The scheme, and the group size of schemes that have groups.
        rounding: The method. w16 has none; w8 and w8a8 know nearest and gptq, and round to nearest for hqq: with 8
            bits there are no outliers to forgive.
        inputs: What the linear reads in the exact model; only calibrated methods need it.

    Raises:
        InvalidInputError: An unknown scheme, group size or method, a weight that is no finite matrix of floats, or
            inputs that a calibrated method cannot use: none, of other features, or not finite.
    """
    check_precision(precision, tuple(SCHEMES))
    _check_rounding(rounding)
    _check_weight(weight)
    scheme = SCHEMES[precision.scheme]
    weight = weight.detach().contiguous()
    if scheme.name == "w16":
        return SixteenBits(to_sixteen_bits(weight))
    if rounding.needs_calibration:
        return _round_calibrated(weight, precision, rounding, inputs)
    return _round_uncalibrated(weight, precision, rounding)


def _is_rotated(weight: torch.Tensor, precision: LayerPrecision, rounding: Rounding) -> bool:
    """Whether a weight is rounded with its inputs rotated: it pays where these are rounded too."""
    has_int8_activations = SCHEMES[precision.scheme].has_int8_activations
    return has_int8_activations and not rounding.is_unrotated and can_rotate(weight.shape[1])


def _marked_rotated(rounded: RoundedWeight) -> RowRounded:
    """What was rounded to int8 after its columns had been rotated."""
    if not isinstance(rounded, RowRounded):
        raise TypeError("Only weights of int8 are rotated.")
    return replace(rounded, is_rotated=True)


def _round_uncalibrated(weight: torch.Tensor, precision: LayerPrecision, rounding: Rounding) -> RoundedWeight:
    scheme = SCHEMES[precision.scheme]
    if _is_rotated(weight, precision, rounding):
        rows = stack([round_rows(rotate(block.float())) for block in blocks_of_rows(weight)])
        return _marked_rotated(rows)
    if not scheme.is_grouped:
        return stack([round_rows(block) for block in blocks_of_rows(weight)])
    fit = fit_half_quadratic if rounding.effective_method == "hqq" else search_clipping
    return round_groups(weight, scheme.weight_bits, precision.group_size, is_symmetric=rounding.is_symmetric, fit=fit)


def _round_calibrated(
    weight: torch.Tensor, precision: LayerPrecision, rounding: Rounding, inputs: InputStatistics | None
) -> RoundedWeight:
    if inputs is None:
        raise InvalidInputError(
            f"Rounding '{rounding.method}' needs the inputs of each layer on calibration samples: send samples, or "
            "round by a method that needs none.",
            reason="NO_CALIBRATION_DATA",
            subject="samples",
        )
    moments, sizes = inputs.second_moments.to(weight.device), inputs.sizes or (weight.shape[0],)
    if (moments.shape[1], sum(sizes)) != (weight.shape[1], weight.shape[0]):
        raise InvalidInputError(
            f"A weight of shape {tuple(weight.shape)} cannot be rounded by statistics of {moments.shape[1]} inputs of "
            f"{sum(sizes)} outputs.",
            reason="BAD_CALIBRATION_DATA",
            subject="inputs",
        )
    bits, group_size = SCHEMES[precision.scheme].weight_bits, precision.group_size
    is_rotated = _is_rotated(weight, precision, rounding)
    if is_rotated:
        weight, moments = rotate(weight.float()), torch.stack([rotate(rotate(part).T) for part in moments])
    parts = zip(weight.split_with_sizes(sizes), moments, strict=True)
    rounded = stack(
        [
            round_calibrated(part, hessian, bits, group_size, is_symmetric=rounding.is_symmetric)
            for part, hessian in parts
        ]
    )
    return _marked_rotated(rounded) if is_rotated else rounded


def to_sixteen_bits(weight: torch.Tensor) -> torch.Tensor:
    """bf16 and fp16 as they are; wider types as fp16, or as bf16 if fp16 cannot hold their range."""
    if weight.dtype in {torch.float16, torch.bfloat16}:
        return weight
    is_in_range = weight.abs().amax() <= torch.finfo(torch.float16).max
    return weight.to(torch.float16 if is_in_range else torch.bfloat16)


def check_precision(precision: LayerPrecision, schemes: Sequence[str]) -> None:
    """Raises InvalidInputError if the scheme is not among `schemes`, or there is no such group size."""
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


def _check_rounding(rounding: Rounding) -> None:
    if rounding.effective_method not in ROUNDING_METHODS:
        raise InvalidInputError(
            f"Unknown rounding '{rounding.method}': there are {', '.join(ROUNDING_METHODS)}.",
            reason="UNKNOWN_ROUNDING",
            subject="rounding",
        )


def _check_weight(weight: torch.Tensor) -> None:
    if weight.ndim != 2 or weight.numel() == 0 or not weight.is_floating_point():  # noqa: PLR2004 a matrix
        raise InvalidInputError(
            f"A weight must be a matrix of floats (out, in), not {weight.dtype} of shape {tuple(weight.shape)}.",
            reason="BAD_WEIGHT",
            subject="weight",
        )
    if not is_all_finite(weight):
        raise InvalidInputError(
            f"The weight of shape {tuple(weight.shape)} holds NaN or infinity: the checkpoint is damaged.",
            reason="BAD_WEIGHT",
            subject="weight",
        )
