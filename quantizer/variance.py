"""The variance indicator of LLM-PQ (arXiv 2403.01136): what quantizing a layer costs in quality, without trying it.

For each linear operator, omega = D_W * S_W(b)^2 * G(X) estimates the variance that rounding adds to an output, and a
layer's omega is the sum over its operators. D_W is the number of inputs, S_W(b) the step of the weight's grid, and
G(X) = Var[X] / 4 for deterministic rounding: an output adds up D_W errors e_i * x_i, and no e_i exceeds half a step.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from llmpq.errors import InvalidInputError
from llmpq.plan import LayerPrecision, Rounding
from llmpq.schemes import SCHEMES
from quantizer.methods import round_weight
from quantizer.rotation import ROTATED_INPUTS, can_rotate, rotate
from quantizer.rounded import SixteenBits
from quantizer.rounding import INT8_MAX


class RunningVariance:
    """Statistics of all inputs that a linear has seen, batch by batch, in constant memory.

    Variance is over all entries, tokens and features alike: X is one random variable in the indicator. Batches are
    joined by the rule of Chan, Golub and LeVeque, so the result does not depend on how rows were cut into batches.
    """

    def __init__(self) -> None:
        self._num_rows = 0
        self._num_entries = 0
        self._mean = 0.0
        self._squared_deviations = 0.0
        self._squared_peaks = 0.0

    def update(self, rows: torch.Tensor) -> None:
        """Takes in a batch (rows, features) of any float type; it may be empty."""
        if rows.numel() == 0:
            return
        entries = rows.detach().double()
        variance, mean = (moment.item() for moment in torch.var_mean(entries, correction=0))
        total = self._num_entries + entries.numel()
        shift = mean - self._mean
        self._squared_deviations += variance * entries.numel() + shift**2 * self._num_entries * entries.numel() / total
        self._mean += shift * entries.numel() / total
        self._squared_peaks += _squared_peaks(rows.detach().float())
        self._num_entries = total
        self._num_rows += entries.shape[0]

    @property
    def variance(self) -> float:
        """Var[X] over all entries of all batches; raises InvalidInputError if there were none."""
        self._check_seen()
        return self._squared_deviations / self._num_entries

    @property
    def squared_int8_step(self) -> float:
        """Mean over rows of the squared step with which inputs are rounded to int8, by group where they are rotated.

        Raises as `variance`.
        """
        self._check_seen()
        return self._squared_peaks / self._num_rows / INT8_MAX**2

    def _check_seen(self) -> None:
        if self._num_rows == 0:
            raise InvalidInputError(
                "There are no calibration rows to rate layers with: give samples of at least one token.",
                reason="NO_CALIBRATION_DATA",
                subject="samples",
            )


def _squared_peaks(rows: torch.Tensor) -> float:
    """The sum over float32 rows of the squared largest magnitude, in the mean of the groups that share a step."""
    groups = rotate(rows).view(len(rows), -1, ROTATED_INPUTS) if can_rotate(rows.shape[1]) else rows[:, None]
    return groups.abs().amax(dim=2).double().square().mean(dim=1).sum().item()


@dataclass(frozen=True)
class RatedLinear:
    """A linear operator as the indicator sees it.

    Attributes:
        weight: (out, in), any float type.
        inputs: Statistics of its inputs over the calibration samples.
    """

    weight: torch.Tensor
    inputs: RunningVariance


def variance_omega(linears: Iterable[RatedLinear], precision: LayerPrecision, rounding: Rounding) -> float:
    """The omega of one layer at a precision, not normalized.

    Args:
        linears: All linear operators of the layer.
        precision: The scheme and its group size.
        rounding: Only its grid counts here. "gptq" keeps the grid of "nearest".
    """
    grid = replace(rounding, method="nearest") if rounding.needs_calibration else rounding
    return sum(_omega(linear, precision, grid) for linear in linears)


def _omega(linear: RatedLinear, precision: LayerPrecision, rounding: Rounding) -> float:
    """D_W * S_W^2 * Var[X] / 4, and for int8 activations D_W * mean(W^2) * S_X^2 / 4 on top.

    The second term is the same bound with the parts exchanged: an output adds up D_W errors w_i * d_i of its rounded
    activations, and no d_i exceeds half a step S_X. (Errors spread evenly over a step have a third of either bound,
    S^2 / 12.) w16 is the reference and has neither.
    """
    num_inputs = linear.weight.shape[1]
    omega = num_inputs * _squared_step(linear.weight, precision, rounding) * linear.inputs.variance / 4
    if SCHEMES[precision.scheme].has_int8_activations:
        omega += num_inputs * linear.weight.float().square().mean().item() * linear.inputs.squared_int8_step / 4
    return omega


def _squared_step(weight: torch.Tensor, precision: LayerPrecision, rounding: Rounding) -> float:
    """S_W^2: the mean over channels and groups of the squared step that the quantizer really uses.

    The mean, because the variances that groups add to an output sum up, and because outputs are averaged over. The
    maximum, which the authors' code takes, would let one outlier rate a whole matrix.
    """
    rounded = round_weight(weight, precision, rounding)
    return 0.0 if isinstance(rounded, SixteenBits) else rounded.scales.double().square().mean().item()
