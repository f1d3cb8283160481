"""What every linear layer can do, however its weight is stored."""

from abc import ABC, abstractmethod

import torch


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
