"""The feed-forward activations, by the names that transformers gives them."""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

Activation = Callable[[torch.Tensor], torch.Tensor]

_TANH_GELU = partial(functional.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Activation] = {
    "silu": functional.silu,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
}


def activated(projected: torch.Tensor, activation: str, *, is_gated: bool) -> torch.Tensor:
    """The activation of (rows, features); of (rows, 2 * features) if gated: activation(gate) * up, gate before up."""
    if not is_gated:
        return ACTIVATIONS[activation](projected)
    gate, up = projected.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up
