"""What every linear layer can do, however its weight is stored."""

from abc import ABC, abstractmethod

import torch

from quantizer.native.call import KernelCall


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

    def kernel_call(self, x: torch.Tensor, y: torch.Tensor, work: torch.Tensor) -> KernelCall | None:  # noqa: ARG002 one of several
        """What `forward` does, as a call of a native kernel; None where torch has a part in it.

        Args:
            x: float32 (rows, in), contiguous.
            y: float32 (rows, out), contiguous.
            work: uint8, at least `work_bytes` a row; calls that are made one after another may share it.
        """
        return None

    @property
    def work_bytes(self) -> int:
        """Bytes that `kernel_call` needs for a row, besides input and output."""
        return 0

    @abstractmethod
    def dequantized(self) -> torch.Tensor:
        """The weight that is stood for, (out, in) float32."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of the stored weight with its metadata."""

    @property
    def float_bias(self) -> torch.Tensor | None:
        """The bias as native kernels take it: float32."""
        return self.bias.float() if self.bias is not None else None

    @property
    def memory_bytes(self) -> int:
        """Bytes held: weight, metadata and bias."""
        return self.weight_bytes + (self.bias.nbytes if self.bias is not None else 0)
