"""What quantizing costs: omega of each layer and scheme."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmpq.errors import InvalidInputError
from llmpq.plan import LayerSensitivity
from llmpq.schemes import SCHEMES

#: Levels of the scheme that defines the unit: w4 on every layer sums to 1.
_UNIT_LEVELS = 2 ** SCHEMES["w4"].weight_bits - 1


def omega_matrix(
    sensitivities: Sequence[LayerSensitivity], num_layers: int, schemes: Sequence[str]
) -> NDArray[np.float64]:
    """Sensitivities as an array (num_layers, schemes).

    Without any given, every layer counts alike and a scheme by the square of its quantizer's step; see `step_omega`.
    w16 costs nothing unless it is given.

    Raises:
        InvalidInputError: Some are given, but not for every layer and scheme.
    """
    if not sensitivities:
        return np.tile([step_omega(scheme) / num_layers for scheme in schemes], (num_layers, 1))
    omega = np.array([[0.0 if scheme == "w16" else np.nan for scheme in schemes] for _ in range(num_layers)])
    columns = {scheme: column for column, scheme in enumerate(schemes)}
    for sensitivity in sensitivities:
        if sensitivity.scheme in columns:
            omega[sensitivity.layer, columns[sensitivity.scheme]] = sensitivity.omega
    missing = np.argwhere(np.isnan(omega))
    if len(missing):
        layer, column = missing[0]
        raise InvalidInputError(
            f"There is no sensitivity for layer {layer} at {schemes[column]}. Give one for every layer and scheme, "
            "or none at all.",
            subject="problem.sensitivities",
        )
    return omega


def step_omega(scheme: str) -> float:
    """Omega of a scheme on every layer, by the squared step 1 / (2^bits - 1) relative to that of w4.

    w16 is the reference and costs nothing. w8a8 rounds the activations to as many bits as the weights and counts twice.
    """
    if scheme == "w16":
        return 0.0
    found = SCHEMES[scheme]
    squared_step: float = (_UNIT_LEVELS / (2**found.weight_bits - 1)) ** 2
    return squared_step * (2 if found.has_int8_activations else 1)
