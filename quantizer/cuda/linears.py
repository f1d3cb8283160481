"""Linear layers on CUDA devices: paths for few and for many rows, and one that leaves the product to cuBLAS."""

from collections.abc import Mapping
from functools import partial

import torch
import triton
from torch.nn import functional

from quantizer.cuda.chip import Chip, Kernel, supported_kernels
from quantizer.cuda.group_products import expanded_groups, group_product
from quantizer.cuda.int8_products import expanded_int8, int8_product, rounded_product, rounded_product_of_cublas
from quantizer.cuda.launch import FEW_ROWS, MANY_ROWS, MANY_ROWS_INT8, NO_TENSOR_CORES, Tiling
from quantizer.cuda.weights import GroupWeight, Int8Weight
from quantizer.kernel_choice import ROW_BUCKETS
from quantizer.multi_path import MultiPathLinear
from quantizer.path_timing import Forward
from quantizer.rounded import GroupRounded, RowRounded

#: Kinds of layers that this process has compiled all kernels of.
_compiled: set[tuple[object, ...]] = set()


class TritonLinear(MultiPathLinear):
    """A linear whose weight Triton kernels read.

    Args:
        weight: As the kernels read it.
        bias: As in `QuantizedLinear`.
        kind: As in `MultiPathLinear`.
        paths: As in `MultiPathLinear`, at least one.
    """

    def __init__(
        self, weight: GroupWeight | Int8Weight, bias: torch.Tensor | None, kind: str, paths: Mapping[str, Forward]
    ) -> None:
        super().__init__(weight.shape, bias, f"{kind}, triton {triton.__version__}")
        self._weight = weight
        self._paths = paths

    def paths(self) -> Mapping[str, Forward]:
        """Each path by name."""
        return self._paths

    def choose_paths(self, device: torch.device, dtype: torch.dtype) -> None:
        """As in `MultiPathLinear`; compiles all kernels first, so that neither measuring nor serving waits for that."""
        key = (self.kind, self.out_features, self.in_features, self.bias is None, device, dtype)
        if key not in _compiled:
            for num_rows in ROW_BUCKETS:
                x = torch.zeros(num_rows, self.in_features, dtype=dtype, device=device)
                for forward in self._paths.values():
                    forward(x)
            _compiled.add(key)
        super().choose_paths(device, dtype)

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, (out, in) float32."""
        return self._weight.dequantized()

    @property
    def weight_bytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return self._weight.nbytes


def group_linear(rounded: GroupRounded, bias: torch.Tensor | None, chip: Chip) -> TritonLinear:
    """w4 or w3, of a group size in `llmpq.schemes.GROUP_SIZES`, on a chip with `Kernel.FUSED`."""
    weight = GroupWeight.of(rounded)

    def by_cublas(x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, expanded_groups(weight, x.dtype), bias)

    paths = _fused_paths(partial(group_product, weight=weight, bias=bias, chip=chip), MANY_ROWS, chip)
    kind = f"w{rounded.bits} group {rounded.group_size}"
    return TritonLinear(weight, bias, kind, {**paths, "cublas": by_cublas})


def int8_linear(rounded: RowRounded, bias: torch.Tensor | None, chip: Chip) -> TritonLinear:
    """w8, on a chip with `Kernel.FUSED`."""
    weight = Int8Weight.of(rounded)

    def by_cublas(x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, expanded_int8(weight, x.dtype), bias)

    paths = _fused_paths(partial(int8_product, weight=weight, bias=bias, chip=chip), MANY_ROWS_INT8, chip)
    return TritonLinear(weight, bias, "w8", {**paths, "cublas": by_cublas})


def rounding_linear(
    rounded: RowRounded, bias: torch.Tensor | None, chip: Chip, activation_group_size: int
) -> TritonLinear:
    """w8a8, on a chip with `Kernel.INT8_PRODUCT`, or with `Kernel.INT8_CUBLAS` if tokens have one scale.

    Args:
        rounded: The weight (out, in).
        bias: (out,) or None.
        chip: That they are on.
        activation_group_size: Neighbouring activations of a token that share a scale; 0 is all of them.
    """
    weight = Int8Weight.of(rounded)
    paths: dict[str, Forward] = {}
    if Kernel.INT8_PRODUCT in supported_kernels(chip.capability):
        product = partial(
            rounded_product, weight=weight, bias=bias, activation_group_size=activation_group_size, chip=chip
        )
        paths |= _fused_paths(product, MANY_ROWS_INT8, chip)
    if not activation_group_size:
        paths["cublas"] = partial(rounded_product_of_cublas, weight=weight, bias=bias)
    return TritonLinear(weight, bias, f"w8a8 activation group {activation_group_size}", paths)


def _fused_paths(product: partial[torch.Tensor], many_rows: Tiling, chip: Chip) -> dict[str, Forward]:
    if not chip.has_tensor_cores:
        return {"few_rows": partial(product, tiling=NO_TENSOR_CORES)}
    return {"few_rows": partial(product, tiling=FEW_ROWS), "many_rows": partial(product, tiling=many_rows)}
