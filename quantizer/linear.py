"""Linear layers with stored weights of each scheme.

Every scheme is a class here. Whatever computes faster replaces `forward` of one of them, or adds a class with the same
stored form, chosen in `quantize_linear`.
"""

from abc import ABC, abstractmethod

import torch

from llmpq.errors import InvalidInputError
from llmpq.plan import LayerPrecision
from llmpq.schemes import GROUP_SIZES, SCHEMES
from quantizer.gemm import expanding_linear, linear
from quantizer.int8_gemm import Int8Matrix
from quantizer.packing import pack, unpack
from quantizer.rounding import GroupRounded, RowRounded, dequantize_groups_, round_groups, round_rows


class QuantizedLinear(ABC):
    """y = x @ weight.T + bias with the weight as a scheme stores it.

    Args:
        shape: (out, in) of the weight.
        bias: (out,), of the type that is computed in, or None.
    """

    def __init__(self, shape: torch.Size, bias: torch.Tensor | None) -> None:
        self.out_features, self.in_features = shape
        self.bias = bias

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x (rows, in), of the type to compute in, to (rows, out) of the same type."""

    @abstractmethod
    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, (out, in) float32."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of the stored weight with its metadata."""

    @property
    def memory_bytes(self) -> int:
        """Bytes held: weight, metadata and bias."""
        return self.weight_bytes + (self.bias.nbytes if self.bias is not None else 0)


class ExpandingLinear(QuantizedLinear):
    """A linear whose weight is expanded to the type of its input on the way to the product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x (rows, in) to (rows, out)."""
        return expanding_linear(x, self.out_features, self.expand, self.bias)

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, (out, in) float32."""
        return self.expand(slice(0, self.out_features), torch.float32)

    @abstractmethod
    def expand(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Output rows `rows` of the weight, (rows, in), in `dtype`."""


class SixteenBitLinear(ExpandingLinear):
    """w16: fp16 or bf16, used as it is where that is the type computed in.

    Args:
        weight: (out, in), fp16 or bf16.
        bias: As in `QuantizedLinear`.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.shape, bias)
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x (rows, in) to (rows, out)."""
        return linear(x, self.weight, self.bias) if x.dtype == self.weight.dtype else super().forward(x)

    def expand(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Output rows `rows` of the weight, (rows, in), in `dtype`."""
        return self.weight[rows].to(dtype)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the stored weight."""
        return self.weight.nbytes


class Int8Linear(ExpandingLinear):
    """w8: symmetric int8 per output channel.

    Args:
        rounded: The weight (out, in).
        bias: As in `QuantizedLinear`.
    """

    def __init__(self, rounded: RowRounded, bias: torch.Tensor | None) -> None:
        super().__init__(rounded.codes.shape, bias)
        self._rounded = rounded

    def expand(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Output rows `rows` of the weight, (rows, in), in `dtype`."""
        return self._rounded.codes[rows].to(dtype).mul_(self._rounded.scales[rows, None].to(dtype))

    @property
    def weight_bytes(self) -> int:
        """Bytes of codes and scales."""
        return self._rounded.codes.nbytes + self._rounded.scales.nbytes


class PackedLinear(ExpandingLinear):
    """w4 and w3: packed codes with scale and zero point per group.

    Args:
        rounded: The weight (out, in).
        bias: As in `QuantizedLinear`.
    """

    def __init__(self, rounded: GroupRounded, bias: torch.Tensor | None) -> None:
        super().__init__(rounded.codes.shape, bias)
        self._packed = pack(rounded.codes, rounded.bits)
        self._scales = rounded.scales
        self._zeros = rounded.zeros
        self._bits = rounded.bits
        self._group_size = rounded.group_size

    def expand(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Output rows `rows` of the weight, (rows, in), in `dtype`."""
        codes = unpack(self._packed[rows], self._bits, self.in_features).to(dtype)
        return dequantize_groups_(codes, self._scales[rows], self._zeros[rows], self._group_size)

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed codes, scales and zero points."""
        return self._packed.nbytes + self._scales.nbytes + self._zeros.nbytes


class DynamicInt8Linear(QuantizedLinear):
    """w8a8 on a CPU: activations rounded to int8 per token, multiplied in integers.

    Args:
        rounded: The weight (out, in).
        bias: As in `QuantizedLinear`.
    """

    def __init__(self, rounded: RowRounded, bias: torch.Tensor | None) -> None:
        super().__init__(rounded.codes.shape, bias)
        self._matrix = Int8Matrix(rounded)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x (rows, in) to (rows, out)."""
        tokens = round_rows(x)
        products = self._matrix.multiply(tokens.codes).mul_(tokens.scales[:, None]).to(x.dtype)
        return products.add_(self.bias) if self.bias is not None else products

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, (out, in) float32."""
        return self._matrix.codes().float().mul_(self._matrix.scales[:, None])

    @property
    def weight_bytes(self) -> int:
        """Bytes of codes and scales, with what the integer product keeps beside them."""
        return self._matrix.nbytes


class SimulatedInt8Linear(Int8Linear):
    """w8a8 where there is no integer product yet: the same rounding of activations, multiplied in floating point."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x (rows, in) to (rows, out)."""
        tokens = round_rows(x)
        return super().forward((tokens.codes * tokens.scales[:, None]).to(x.dtype))


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
    weight = weight.detach().to(device)
    bias = bias.detach().to(device, compute_dtype) if bias is not None else None
    scheme = SCHEMES[precision.scheme]
    if scheme.name == "w16":
        return SixteenBitLinear(to_sixteen_bits(weight), bias)
    if scheme.is_grouped:
        return PackedLinear(round_groups(weight, scheme.weight_bits, precision.group_size), bias)
    if not scheme.has_int8_activations:
        return Int8Linear(round_rows(weight), bias)
    return (DynamicInt8Linear if device.type == "cpu" else SimulatedInt8Linear)(round_rows(weight), bias)


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


def to_sixteen_bits(weight: torch.Tensor) -> torch.Tensor:
    """bf16 and fp16 as they are; wider types as fp16, or as bf16 if fp16 cannot hold their range."""
    if weight.dtype in {torch.float16, torch.bfloat16}:
        return weight.contiguous()
    is_in_range = weight.abs().amax() <= torch.finfo(torch.float16).max
    return weight.to(torch.float16 if is_in_range else torch.bfloat16).contiguous()
