"""What a decoder layer does between its matrix products, by the native kernels: float32 on a CPU.

Each operation does at once what torch does in several passes over memory. A row comes out the same, bit by bit,
whatever other rows there are.
"""

import ctypes
import functools
from dataclasses import dataclass

import torch

from quantizer.native.call import KernelCall
from quantizer.native.library import Kernels, Team, address, kernels

_POINTER, _INTEGER, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double

#: How glue.h numbers the activations.
GATE_ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1, "gelu_new": 1}

#: What attention.cpp has room for.
_MAX_HEAD_DIM, _MAX_SHARING = 256, 192


class _NormOfSum(ctypes.Structure):
    """Mirror of the struct in glue.h; see there for each field. So are the others."""

    _fields_ = (
        *((name, _POINTER) for name in ("x", "added", "sum", "y", "weight", "bias")),
        *((name, _INTEGER) for name in ("num_rows", "num_features", "is_layer_norm")),
        ("eps", _REAL),
        ("team", Team),
    )


class _GatedProduct(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("x", "y")),
        *((name, _INTEGER) for name in ("num_rows", "num_features", "activation")),
        ("team", Team),
    )


class _AttentionOfRows(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("projected", "y", "keys", "values", "key_scales", "value_scales", "layout")),
        *((name, _POINTER) for name in ("cosines", "sines")),
        *((name, _POINTER) for name in ("query_norm", "key_norm", "slopes")),
        *((name, _INTEGER) for name in ("num_sequences", "num_heads", "num_kv_heads", "head_dim")),
        *((name, _INTEGER) for name in ("num_rotated", "max_tokens", "window", "has_head_norms")),
        *((name, _REAL) for name in ("scale", "soft_cap", "eps")),
        ("team", Team),
    )


@dataclass(frozen=True)
class RowNorm:
    """A norm of rows.

    Attributes:
        weight: (features,) float32, or None for ones.
        bias: (features,) float32, or None for zeros.
        eps: Added to the mean square.
        is_layer_norm: Else it is an RMS norm.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float
    is_layer_norm: bool


@dataclass(frozen=True)
class CachedHeads:
    """Keys and values of one layer. Only these kernels can read the keys that they have put there.

    Attributes:
        keys: (slots, kv heads, tokens, head_dim) float32 or int8, contiguous. Where 16 tokens of a slot's head begin,
            their keys are kept as (head_dim, 16), and what is left as (head_dim, tokens): so queries meet whole vectors
            of tokens.
        values: Like keys, in the order of their shape.
        key_scales: (slots, kv heads, tokens) float32, of int8 keys; else None.
        value_scales: Likewise.
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None = None
    value_scales: torch.Tensor | None = None


@dataclass(frozen=True)
class AttentionKind:
    """What is the same for all micro-batches that a layer attends to.

    Attributes:
        num_heads: Query heads, a multiple of the kv heads.
        scale: Factor on the products of queries and keys.
        window: How many tokens a query sees, its own the last of them; None is all.
        soft_cap: c of `c tanh(score / c)`; None without.
        slopes: (heads,) float32 added to scores per position of distance, or None.
        head_norms: (head_dim,) float32 weights of the RMS norms of query and key heads, None for ones; or None without.
        eps: Of those norms.
    """

    num_heads: int
    scale: float
    window: int | None = None
    soft_cap: float | None = None
    slopes: torch.Tensor | None = None
    head_norms: tuple[torch.Tensor | None, torch.Tensor | None] | None = None
    eps: float = 0.0

    def is_served(self, num_kv_heads: int, head_dim: int) -> bool:
        """Whether the native kernels have room for it."""
        return head_dim <= _MAX_HEAD_DIM and self.num_heads // num_kv_heads <= _MAX_SHARING


class DecoderKernels:
    """The operations, for the instruction set of `kernels`."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._norm_of_sum = kernels.function("norm_of_sum")
        self._gated_product = kernels.function("gated_product")
        self._attend = kernels.function("attend")

    def norm(self, x: torch.Tensor, norm: RowNorm) -> torch.Tensor:
        """The norm of float32 x (rows, features)."""
        y = torch.empty_like(x)
        self.sum_and_norm(x, None, None, y, norm).run()
        return y

    def norm_of_sum(self, x: torch.Tensor, added: torch.Tensor, norm: RowNorm) -> tuple[torch.Tensor, torch.Tensor]:
        """X + added, and the norm of that; all float32 (rows, features)."""
        total, y = torch.empty_like(x), torch.empty_like(x)
        self.sum_and_norm(x, added, total, y, norm).run()
        return total, y

    def sum_and_norm(
        self, x: torch.Tensor, added: torch.Tensor | None, total: torch.Tensor | None, y: torch.Tensor, norm: RowNorm
    ) -> KernelCall:
        """The call behind `norm`, and with two more tensors behind `norm_of_sum`. Total may be x, and y too."""
        tensors = (x, added, total, y, norm.weight, norm.bias)
        work = _NormOfSum(*map(address, tensors), *(*x.shape, norm.is_layer_norm, norm.eps), self._kernels.team())
        return KernelCall(self._norm_of_sum, work, tensors)

    def gated_product(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        """activation(gate) * up, (rows, features), of x (rows, 2 * features) float32, gate before up.

        Args:
            x: The projections.
            activation: One of GATE_ACTIVATIONS.
        """
        y = x.new_empty(len(x), x.shape[1] // 2)
        self.gate(x, y, activation).run()
        return y

    def gate(self, x: torch.Tensor, y: torch.Tensor, activation: str) -> KernelCall:
        """The call behind `gated_product`, from x to y (rows, features)."""
        work = _GatedProduct(address(x), address(y), *y.shape, GATE_ACTIVATIONS[activation], self._kernels.team())
        return KernelCall(self._gated_product, work, (x, y))

    def attend(
        self,
        projected: torch.Tensor,
        cache: CachedHeads,
        layout: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
        kind: AttentionKind,
    ) -> torch.Tensor:
        """Causal attention of new tokens over what is cached of their own sequences.

        Queries and keys are normed and rotated, and keys and values are put into the cache, on the way.

        Args:
            projected: (rows, (heads + 2 kv heads) * head_dim) float32: queries, keys, values. It is overwritten.
            cache: Keys and values of the layer.
            layout: int64 (3, sequences): slots, cached tokens, new tokens; the rows are one sequence's after another's.
            rotation: Cosines and sines, each (rows, 1, rotated channels) float32, or None.
            kind: `is_served` for these sizes.

        Returns:
            (rows, heads * head_dim).
        """
        y = projected.new_empty(len(projected), kind.num_heads * cache.keys.shape[-1])
        self.attention(projected, y, cache, layout, rotation, kind=kind).run()
        return y

    def attention(
        self,
        projected: torch.Tensor,
        y: torch.Tensor,
        cache: CachedHeads,
        layout: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
        *,
        kind: AttentionKind,
    ) -> KernelCall:
        """The call behind `attend`, to y (rows, heads * head_dim)."""
        _, num_kv_heads, max_tokens, head_dim = cache.keys.shape
        cosines, sines = rotation or (None, None)
        num_rotated = cosines.shape[-1] if cosines is not None else 0
        query_norm, key_norm = kind.head_norms or (None, None)
        cached = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
        tensors = (projected, y, *cached, layout, cosines, sines, query_norm, key_norm, kind.slopes)
        work = _AttentionOfRows(
            *map(address, tensors),
            *(layout.shape[1], kind.num_heads, num_kv_heads, head_dim),
            *(num_rotated, max_tokens, kind.window or 0, kind.head_norms is not None),
            *(kind.scale, kind.soft_cap or 0.0, kind.eps),
            self._kernels.team(),
        )
        return KernelCall(self._attend, work, tensors)


@functools.cache
def decoder_kernels() -> DecoderKernels | None:
    """The operations of this process; None where there are no native kernels."""
    native = kernels()
    return DecoderKernels(native) if native is not None else None
