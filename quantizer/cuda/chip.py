"""What a CUDA chip can run, decided from its compute capability alone."""

from dataclasses import dataclass
from enum import StrEnum

import torch

#: The first chips with tensor cores that Triton uses, and with bf16.
AMPERE = (8, 0)
#: The first chips whose tensor cores multiply int8, which cuBLAS uses and Triton does not.
TURING = (7, 5)
#: The oldest chips that Triton compiles for.
VOLTA = (7, 0)


class Kernel(StrEnum):
    """What a linear layer can be made of on a CUDA device, besides torch's own operators."""

    #: Weights expanded in registers on the way to the product.
    FUSED = "fused"
    #: Weights expanded in memory, for cuBLAS.
    EXPAND = "expand"
    #: Activations rounded to int8, one scale a token.
    ROUND_TOKENS = "round_tokens"
    #: int8 times int8 with both scales in the epilogue, by Triton.
    INT8_PRODUCT = "int8_product"
    #: int8 times int8 by cuBLAS, `torch._int_mm`.
    INT8_CUBLAS = "int8_cublas"


@dataclass(frozen=True)
class Chip:
    """A CUDA device, as far as launches depend on it.

    Attributes:
        capability: Compute capability, such as (8, 0).
        num_processors: Streaming multiprocessors.
    """

    capability: tuple[int, int]
    num_processors: int

    @classmethod
    def of(cls, device: torch.device) -> "Chip":
        """The chip that a torch device is."""
        properties = torch.cuda.get_device_properties(device)
        return cls((properties.major, properties.minor), properties.multi_processor_count)

    @property
    def has_tensor_cores(self) -> bool:
        """Whether Triton's products run on tensor cores; before Ampere they run on ordinary units."""
        return self.capability >= AMPERE


def supported_kernels(capability: tuple[int, int]) -> frozenset[Kernel]:
    """The kernels that work on chips of a compute capability.

    8.0 and up: all of them, on tensor cores. 7.5: Triton (3.3 and up) multiplies on ordinary units there and not in
    int8 at all; cuBLAS does int8 on tensor cores. 7.0 and 7.2: no int8 product. Older chips: none, for Triton does not
    compile for them.
    """
    if capability >= AMPERE:
        return frozenset(Kernel)
    if capability >= TURING:
        return frozenset(Kernel) - {Kernel.INT8_PRODUCT}
    if capability >= VOLTA:
        return frozenset({Kernel.FUSED, Kernel.EXPAND})
    return frozenset()


def supported_dtypes(capability: tuple[int, int]) -> frozenset[torch.dtype]:
    """The types that the kernels take activations in: float16, and bfloat16 where the chip has it."""
    return frozenset({torch.float16, torch.bfloat16} if capability >= AMPERE else {torch.float16})
