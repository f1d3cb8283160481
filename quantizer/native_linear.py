"""Linear layers that the native kernels multiply with activations rounded to int8: w8a8, w4 and w3 on a CPU."""

from collections.abc import Mapping

import torch

from quantizer.multi_path import MultiPathLinear
from quantizer.native.call import KernelCall
from quantizer.native.library import Kernels
from quantizer.path_timing import Forward
from quantizer.rounded import GroupRounded, RowRounded
from quantizer.tiles import TiledWeight


class NativeLinear(MultiPathLinear):
    """Products of exact integers, per group of inputs, with a scale of the activations and a scale of the weights.

    Activations are rounded per token and group (the group of the weights, else `ACTIVATION_GROUP_SIZE`), so that the
    few large ones that some layers have cost precision in their group alone. All paths give the same bits, and a row
    comes out the same whatever other rows there are.

    Args:
        rounded: The weight (out, in).
        bias: As in `QuantizedLinear`.
        kernels: Of this process.
    """

    def __init__(self, rounded: RowRounded | GroupRounded, bias: torch.Tensor | None, kernels: Kernels) -> None:
        self._weight = TiledWeight.of(rounded)
        super().__init__(rounded.shape, bias, f"{self._weight.bits} bits, group size {self._weight.group_size}")
        self._kernels = kernels

    def paths(self) -> Mapping[str, Forward]:
        """`fused` unpacks codes in registers for every few rows, `unpacked` once for all rows."""
        if self._weight.zeros is None:  # there is nothing to unpack
            return {"fused": self._fused}
        return {"fused": self._fused, "unpacked": self._unpacked}

    def kernel_call(self, x: torch.Tensor, y: torch.Tensor, work: torch.Tensor) -> KernelCall:
        """See QuantizedLinear."""
        unpacks_first = self.path_at(len(x)) == "unpacked"
        return self._kernels.code_product(x, y, work, self._weight, self.float_bias, unpacks_first=unpacks_first)

    @property
    def work_bytes(self) -> int:
        """See QuantizedLinear."""
        return self._weight.work_bytes

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, (out, in) float32."""
        return self._weight.dequantized()

    @property
    def weight_bytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return self._weight.nbytes

    def _fused(self, x: torch.Tensor) -> torch.Tensor:
        return self._multiply(x, unpacks_first=False)

    def _unpacked(self, x: torch.Tensor) -> torch.Tensor:
        return self._multiply(x, unpacks_first=True)

    def _multiply(self, x: torch.Tensor, *, unpacks_first: bool) -> torch.Tensor:
        product = self._kernels.multiply_codes(x.float(), self._weight, self.float_bias, unpacks_first=unpacks_first)
        return product.to(x.dtype)
