"""Gradients of the loss through layers whose products PyTorch cannot differentiate."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from quantizer.gemm import linear
from quantizer.quantized_linear import QuantizedLinear
from stage_server.ends import Head
from stage_server.logit_rows import logit_rows

#: Takes what a linear read, what it made of that, and the gradient of the loss by the latter, each (rows, features).
OnGradient = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


class DifferentiableLinear(QuantizedLinear):
    """A linear through which gradients flow back to the input, whatever kernel multiplies.

    Args:
        inner: Multiplies.
        on_gradient: Called each time a gradient has come back to the output.
    """

    def __init__(self, inner: QuantizedLinear, on_gradient: OnGradient | None = None) -> None:
        super().__init__(torch.Size((inner.out_features, inner.in_features)), inner.bias)
        self._inner = inner
        self._transposed: torch.Tensor | None = None
        self.on_gradient = on_gradient

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See QuantizedLinear."""
        return _Product.apply(x, self)  # type: ignore[no-any-return, no-untyped-call]

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """The product alone."""
        return self._inner.forward(x)

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient by the input (rows, in), of that by the output (rows, out)."""
        if self._transposed is None:
            self._transposed = self._inner.dequantized().to(gradient.dtype).T.contiguous()
        return linear(gradient, self._transposed, None)

    def dequantized(self) -> torch.Tensor:
        """See QuantizedLinear."""
        return self._inner.dequantized()

    @property
    def weight_bytes(self) -> int:
        """See QuantizedLinear."""
        return self._inner.weight_bytes


class _Product(torch.autograd.Function):
    """The product of a DifferentiableLinear as autograd sees it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, linear: DifferentiableLinear) -> torch.Tensor:
        """Multiplies, and keeps what `backward` tells of."""
        y = linear.multiply(x)
        if linear.on_gradient is not None:
            ctx.save_for_backward(x, y)
        ctx.linear = linear
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Tells of the gradient, and hands it on."""
        (gradient,), linear = gradients, ctx.linear
        if linear.on_gradient is not None:
            linear.on_gradient(*ctx.saved_tensors, gradient)
        return linear.back(gradient), None


def loss_gradients(head: Head, hidden: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gradient of -log p(token), summed over rows, for tokens drawn from what the head makes of the rows.

    Args:
        head: Of the model.
        hidden: (rows, hidden) after the last layer.
        generator: Draws, on the device of `hidden`.

    Returns:
        (rows, hidden).
    """
    head = replace(
        head,
        vocabulary=DifferentiableLinear(head.vocabulary),
        projection=DifferentiableLinear(head.projection) if head.projection is not None else None,
    )
    gradients: list[torch.Tensor] = []
    for rows in logit_rows(head, len(hidden)):
        leaf = hidden[rows].detach().requires_grad_()
        with torch.enable_grad():
            logits = head.logits(leaf)
            drawn = torch.multinomial(logits.detach().softmax(dim=-1), 1, generator=generator)[:, 0]
            loss = cross_entropy(logits, drawn, reduction="sum")
        gradients.append(*torch.autograd.grad(loss, leaf))
    return torch.cat(gradients)
