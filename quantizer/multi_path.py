"""Linear layers that can be multiplied in several ways, and take the one that is fastest for the rows at hand."""

from abc import abstractmethod
from collections.abc import Mapping

import torch

from quantizer.kernel_choice import Choice, choose
from quantizer.path_timing import Forward
from quantizer.quantized_linear import QuantizedLinear


class MultiPathLinear(QuantizedLinear):
    """A linear with several paths from x to y over one stored weight.

    All paths compute the same, up to the order in which floats are summed: which one is taken is a matter of time only,
    so that answers do not hang on what was measured.

    Args:
        shape: As in `QuantizedLinear`.
        bias: As in `QuantizedLinear`.
        kind: What tells this kind of weight from others of the same shape, such as "w4 group 64".
    """

    def __init__(self, shape: torch.Size, bias: torch.Tensor | None, kind: str) -> None:
        super().__init__(shape, bias)
        self.kind = kind
        self._choice: Choice | None = None

    @abstractmethod
    def paths(self) -> Mapping[str, Forward]:
        """Each path by name; the same names, in the same order, for all weights of a kind on a device."""

    def choose_paths(self, device: torch.device, dtype: torch.dtype) -> None:
        """Finds out which path is the fastest for how many rows (see `kernel_choice`), for inputs of this type.

        Whoever builds a layer calls this, so that measuring falls into loading; else the first `forward` does.
        """
        self._choice = choose(self.kind, (self.out_features, self.in_features), device, dtype, self.paths())

    def path_at(self, num_rows: int) -> str:
        """Name of the path that `forward` takes for a number of rows; `choose_paths` has been called."""
        if self._choice is None:
            raise RuntimeError("choose_paths has not been called")
        return self._choice.path(num_rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x (rows, in) to (rows, out) by the fastest path."""
        if self._choice is None:
            self.choose_paths(x.device, x.dtype)
        return self.paths()[self.path_at(len(x))](x)
