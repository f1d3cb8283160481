"""What calibrated rounding knows of the inputs that a linear layer meets."""

import torch

from llmpq.errors import InvalidInputError


class InputStatistics:
    """The second moments of all inputs that a linear has seen, batch by batch, in constant memory.

    The matrix E[x x^T] says what an error of the weight does to the outputs: a row that is off by e moves its output by
    e^T x, whose mean square is e^T E[x x^T] e. It is half the Hessian of that loss, and is kept in float32 (4 bytes per
    pair of features, on the device of the inputs). Where it is known what moving the outputs does to the loss of the
    model, inputs count by that: E[w x x^T] with w the mean squared gradient by the outputs is the Fisher information of
    these, taken alike for all of them (GuidedQuant, arXiv 2505.07004).

    Args:
        sizes: Outputs of each part of the linear whose inputs have weights of their own, in order; None is one part.
    """

    def __init__(self, sizes: tuple[int, ...] | None = None) -> None:
        self.sizes = sizes
        self.num_rows = 0
        self._sum = torch.empty(0)
        self._total_weight = torch.empty(0)

    def update(self, rows: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Takes in a batch.

        Args:
            rows: (rows, features) of any float type; there may be none.
            weights: (parts, rows) float32, not negative; None is all alike.
        """
        inputs = rows.detach().float()
        if weights is None:
            weights = inputs.new_ones(len(self.sizes or [1]), len(inputs))
        if self.num_rows == 0:
            self._sum = inputs.new_zeros(len(weights), inputs.shape[1], inputs.shape[1])
            self._total_weight = inputs.new_zeros(len(weights))
        for part, of_rows in enumerate(weights):
            weighted = inputs * of_rows.sqrt()[:, None]
            self._sum[part].addmm_(weighted.T, weighted)
        self._total_weight += weights.sum(dim=1)
        self.num_rows += inputs.shape[0]

    @property
    def second_moments(self) -> torch.Tensor:
        """E[w x x^T] / E[w] over all rows of all batches, float32 (parts, features, features); 0 if all weights are.

        Raises:
            InvalidInputError: There were no rows, or they held NaN, infinity or values whose squares overflow.
        """
        if self.num_rows == 0:
            raise InvalidInputError(
                "There are no calibration rows to round weights by: give samples of at least one token.",
                reason="NO_CALIBRATION_DATA",
                subject="samples",
            )
        total = self._total_weight.clamp(min=torch.finfo(torch.float32).tiny)
        moments = self._sum / total[:, None, None]
        if not moments.isfinite().all():
            raise InvalidInputError(
                "The inputs of a linear layer are not finite on the calibration samples: the checkpoint is damaged, "
                "or the compute type too narrow for it.",
                reason="BAD_CALIBRATION_DATA",
                subject="samples",
            )
        return moments
