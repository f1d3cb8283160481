"""What calibrated rounding knows of the inputs that a linear layer meets."""

import torch

from llmpq.errors import InvalidInputError


class InputStatistics:
    """The second moments of all inputs that a linear has seen, batch by batch, in constant memory.

    The matrix E[x x^T] says what an error of the weight does to the outputs: a row that is off by e moves its output by
    e^T x, whose mean square is e^T E[x x^T] e. It is half the Hessian of that loss, and is kept in float32 (4 bytes per
    pair of features, on the device of the inputs).
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self._sum = torch.empty(0)

    def update(self, rows: torch.Tensor) -> None:
        """Takes in a batch (rows, features) of any float type; it may be empty."""
        inputs = rows.detach().float()
        if self.num_rows == 0:
            self._sum = inputs.new_zeros(inputs.shape[1], inputs.shape[1])
        self._sum.addmm_(inputs.T, inputs)
        self.num_rows += inputs.shape[0]

    @property
    def second_moments(self) -> torch.Tensor:
        """E[x x^T] over all rows of all batches, float32 (features, features).

        Raises:
            InvalidInputError: There were no rows, or they held NaN, infinity or values whose squares overflow.
        """
        if self.num_rows == 0:
            raise InvalidInputError(
                "There are no calibration rows to round weights by: give samples of at least one token.",
                reason="NO_CALIBRATION_DATA",
                subject="samples",
            )
        moments = self._sum / self.num_rows
        if not moments.isfinite().all():
            raise InvalidInputError(
                "The inputs of a linear layer are not finite on the calibration samples: the checkpoint is damaged, "
                "or the compute type too narrow for it.",
                reason="BAD_CALIBRATION_DATA",
                subject="samples",
            )
        return moments
