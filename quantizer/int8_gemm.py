"""The integer matrix product of a CPU: int8 activations times int8 weights, summed in int32."""

import functools

import torch

from quantizer.rounded import RowRounded
from quantizer.rounding import INT8_MAX

#: Zero point of unsigned 8-bit activations.
_ZERO_POINT = 128


class Int8Matrix:
    """An int8 weight in the layout of oneDNN's integer product; the only copy, the codes given are not kept.

    oneDNN wants unsigned activations (signed ones are far slower), so codes are sent shifted by a zero point. On CPUs
    with VNNI it takes that off again by an int32 sum per output channel, kept beside weights filled up to whole tiles.

    Without VNNI the instruction at the bottom adds two products in 16 bits and saturates: silently wrong sums, whatever
    operator is on top. There each activation is split in two halves of 7 bits, which cannot saturate, so that sums are
    exact on every CPU; that doubles the arithmetic, not the traffic of weights.

    Args:
        rounded: The weight (out, in).
    """

    def __init__(self, rounded: RowRounded) -> None:
        self.scales = rounded.scales
        self._packed = torch.ops.onednn.qlinear_prepack(rounded.codes, None)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as laid out, with what oneDNN keeps beside them, and of the scales."""
        packed_bytes: int = torch.ops.mkldnn._nbytes(self._packed)  # noqa: SLF001 the operator has no public name
        return packed_bytes + self.scales.nbytes

    def multiply(self, codes: torch.Tensor) -> torch.Tensor:
        """Computes codes @ weight_codes.T * scales, each sum of products exact until it becomes float32.

        Args:
            codes: int8 (rows, in), from -127 to 127, contiguous.

        Returns:
            float32 (rows, out).
        """
        shifted = codes.view(torch.uint8) ^ _ZERO_POINT  # adds 128 modulo 256
        if not saturates():
            return _multiply(shifted, _ZERO_POINT, self._packed, self.scales)
        half = shifted >> 1
        halves = torch.cat((half, shifted - half))
        products = _multiply(halves, _ZERO_POINT // 2, self._packed, self.scales)
        first, second = products.chunk(2)
        return first.add_(second)

    def codes(self) -> torch.Tensor:
        """The int8 (out, in) codes, read back."""
        codes: torch.Tensor = self._packed.to_dense().t()
        return codes


@functools.cache
def saturates() -> bool:
    """Whether this process's integer product saturates in 16 bits; found by trying the worst case."""
    worst = torch.full((1, 64), INT8_MAX, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(worst, None)
    activations = torch.full((1, 64), _ZERO_POINT + INT8_MAX, dtype=torch.uint8)
    product = _multiply(activations, _ZERO_POINT, packed, torch.ones(1))
    return product.item() != 64 * INT8_MAX * INT8_MAX


def _multiply(activations: torch.Tensor, zero_point: int, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(activations - zero_point) @ packed.T * scales, float32 (rows, out), of uint8 (rows, in) activations."""
    no_zero_point = torch.zeros(1, dtype=torch.int32)  # weights are symmetric
    product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        activations, 1.0, zero_point, packed, scales, no_zero_point, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product
