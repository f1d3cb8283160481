"""Gradients of the loss through layers whose products PyTorch cannot differentiate."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

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
        self._weight: torch.Tensor | None = None
        self.on_gradient = on_gradient

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See QuantizedLinear."""
        return _Product.apply(x, self)  # type: ignore[no-any-return, no-untyped-call]

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """The product alone."""
        return self._inner.forward(x)

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient by the input (rows, in), of that by the output (rows, out)."""
        if self._weight is None:
            self._weight = self._inner.dequantized().to(gradient.dtype)
        return linear(gradient, self._weight.T, None)

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


def loss_gradients(head: Head, states: Iterable[torch.Tensor], generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Gradients of -log p(token), summed over rows, for tokens drawn from what the head makes of the rows.

    Args:
        head: Of the model.
        states: Of each sample (rows, hidden) after the last layer.
        generator: Draws, on the device of `states`.

    Yields:
        Of each sample (rows, hidden).
    """
    head = replace(
        head,
        vocabulary=DifferentiableLinear(head.vocabulary),
        projection=DifferentiableLinear(head.projection) if head.projection is not None else None,
    )
    for hidden in states:
        yield torch.cat([_loss_gradients(head, hidden[rows], generator) for rows in logit_rows(head, len(hidden))])


def _loss_gradients(head: Head, hidden: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    leaf = hidden.detach().requires_grad_()
    with torch.enable_grad():
        logits = head.logits(leaf)
    (gradient,) = torch.autograd.grad(logits, leaf, _logit_gradients(logits.detach(), generator))
    return gradient


def _logit_gradients(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gradient of -log p(token) by the logits, for a token drawn in each row: what is predicted less what is drawn."""
    gradients = logits.softmax(dim=-1)
    drawn = drawn_columns(gradients, generator)
    return gradients.scatter_add_(1, drawn, gradients.new_full(drawn.shape, -1.0))


def drawn_columns(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A column of each row (rows, columns), drawn by its probabilities: (rows, 1) int64.

    A draw inverts the cumulative distribution. torch.multinomial, which needs a random number for each column, takes
    longer on a CPU than both products of a head.
    """
    cumulative = probabilities.cumsum(dim=-1)
    chosen = torch.rand(len(cumulative), 1, generator=generator, device=cumulative.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, chosen)
