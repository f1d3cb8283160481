"""Linear layers that store fewer bits than they compute in: w16, w8, w4 and w3.

They can all expand the weight on the way to a product of torch. Where a weight is better read in its stored form, there
is a further path.
"""

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial

import torch

from quantizer.gemm import expanding_linear, linear
from quantizer.multi_path import MultiPathLinear
from quantizer.native.call import KernelCall
from quantizer.native.library import Kernels, kernels
from quantizer.packing import pack, unpack
from quantizer.path_timing import Forward
from quantizer.rounded import GroupRounded, RowRounded, dequantize_groups_


class ExpandingLinear(MultiPathLinear):
    """A linear whose weight can be expanded to the type of its input on the way to the product."""

    def paths(self) -> Mapping[str, Forward]:
        """`expanded` expands a block of the weight at a time and multiplies by torch's product."""
        return {"expanded": self._expanded}

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, (out, in) float32."""
        return self.expand(slice(0, self.out_features), torch.float32)

    @abstractmethod
    def expand(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Output rows `rows` of the weight, (rows, in), in `dtype`."""

    def _expanded(self, x: torch.Tensor) -> torch.Tensor:
        return expanding_linear(x, self.out_features, self.expand, self.bias)


#: Which of the kernels that convert in registers a path takes.
_IN_PANELS = {"fused": False, "panels": True}


class ConvertingLinear(ExpandingLinear):
    """A linear whose stored numbers a native kernel converts in registers, where there is one: best at few rows.

    Args:
        stored: (out, in), as the kernel reads it.
        scales: (out,) float32, if those numbers stand for multiples of them, else None.
        bias: As in `QuantizedLinear`.
    """

    def __init__(self, stored: torch.Tensor, scales: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        super().__init__(stored.shape, bias, f"{stored.dtype}")
        self._stored = stored
        self._scales = scales
        self._kernels = kernels() if stored.device.type == "cpu" and stored.is_contiguous() else None

    def paths(self) -> Mapping[str, Forward]:
        """`fused` converts in registers, `panels` in blocks that serve many rows; else as `ExpandingLinear`."""
        paths = super().paths()
        if self._kernels is None:
            return paths
        fused = {
            name: partial(self._fused, self._kernels, in_panels=in_panels) for name, in_panels in _IN_PANELS.items()
        }
        return fused | dict(paths)

    def kernel_call(self, x: torch.Tensor, y: torch.Tensor, work: torch.Tensor) -> KernelCall | None:  # noqa: ARG002 none
        """See QuantizedLinear."""
        path = self.path_at(len(x))
        if self._kernels is None or path not in _IN_PANELS:
            return None
        in_panels = _IN_PANELS[path]
        return self._kernels.float_product(x, y, self._stored, self._scales, self.float_bias, in_panels=in_panels)

    def expand(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Output rows `rows` of the weight, (rows, in), in `dtype`."""
        expanded = self._stored[rows].to(dtype)
        return expanded.mul_(self._scales[rows, None].to(dtype)) if self._scales is not None else expanded

    @property
    def weight_bytes(self) -> int:
        """Bytes of the stored numbers and of the scales."""
        return self._stored.nbytes + (self._scales.nbytes if self._scales is not None else 0)

    def _fused(self, kernels: Kernels, x: torch.Tensor, *, in_panels: bool) -> torch.Tensor:
        product = kernels.multiply_floats(x.float(), self._stored, self._scales, self.float_bias, in_panels=in_panels)
        return product.to(x.dtype)


class SixteenBitLinear(ConvertingLinear):
    """w16: fp16 or bf16, used as it is where that is the type computed in.

    Args:
        weight: (out, in), fp16 or bf16.
        bias: As in `QuantizedLinear`.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight, None, bias)

    def _expanded(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self._stored, self.bias) if x.dtype == self._stored.dtype else super()._expanded(x)


class Int8Linear(ConvertingLinear):
    """w8: symmetric int8 per output channel.

    Args:
        rounded: The weight (out, in).
        bias: As in `QuantizedLinear`.
    """

    def __init__(self, rounded: RowRounded, bias: torch.Tensor | None) -> None:
        super().__init__(rounded.codes, rounded.scales, bias)


class PackedLinear(ExpandingLinear):
    """w4 and w3: packed codes with scale and zero point per group.

    Args:
        rounded: The weight (out, in).
        bias: As in `QuantizedLinear`.
    """

    def __init__(self, rounded: GroupRounded, bias: torch.Tensor | None) -> None:
        super().__init__(rounded.shape, bias, f"{rounded.bits} bits, group size {rounded.group_size}")
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
