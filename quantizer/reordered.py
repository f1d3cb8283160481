"""Linear layers whose columns stand in another order than their inputs."""

import torch

from quantizer.quantized_linear import QuantizedLinear


class ReorderedLinear(QuantizedLinear):
    """A linear that takes its inputs in the order of its columns.

    GPTQ may put input channels into groups by their importance. Sorted by group, the columns are those of any weight
    with groups; only the inputs must follow.

    Args:
        inner: Multiplies inputs that are in order.
        input_order: (in,) whole numbers, the input channel of each column.
    """

    def __init__(self, inner: QuantizedLinear, input_order: torch.Tensor) -> None:
        super().__init__(torch.Size((inner.out_features, inner.in_features)), inner.bias)
        self._inner = inner
        self._order = input_order.int()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x (rows, in) to (rows, out)."""
        return self._inner.forward(x.index_select(1, self._order))

    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, (out, in) float32, its columns in the order of the inputs."""
        return self._inner.dequantized()[:, self._order.argsort()]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight with its metadata, and of the order."""
        return self._inner.weight_bytes + self._order.nbytes
