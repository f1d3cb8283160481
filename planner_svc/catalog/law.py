"""How long a decoder layer takes: the roofline (Williams et al. 2009) with the rates that kernels reach.

    linears(rows)  = launch + max(2 * weights * rows / flop_per_s, stored_bytes / bytes_per_s)
    expanded first = launch + (stored_bytes + E) / bytes_per_s + max(2 * weights * rows / flop_per_s, E / bytes_per_s)
    prefill        = linears + scores * (score_bytes / memory + 4 * head_dim / attention_flop_per_s)
    decode         = linears + kv_bytes * kv_passes / memory

with E the bytes of the weights as the GEMM reads them, and scores = heads * pairs, a pair being a row with a token that
it attends to. LLM-PQ measures these times instead; this law reproduces its authors' measurements to the errors that
`tests/planner_svc/catalog/test_law.py` states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from llmpq.device import Phase
from llmpq.model import ModelShape
from llmpq.schemes import SCHEMES
from planner_svc.workload import Load


@dataclass(frozen=True)
class LayerSize:
    """What the time of a layer depends on.

    Attributes:
        matrices: (out, in) of each weight matrix.
        num_heads: Query heads.
        head_dim: Width of a head.
        kv_size: Elements of the keys of one token; the values have as many.
    """

    matrices: tuple[tuple[int, int], ...]
    num_heads: int
    head_dim: int
    kv_size: int

    @classmethod
    def of(cls, shape: ModelShape) -> Self:
        """The layer of a model."""
        return cls(tuple(shape.linear_shapes.values()), shape.num_heads, shape.head_dim, shape.kv_size)

    @property
    def num_weights(self) -> int:
        """Elements of all matrices."""
        return sum(out_features * in_features for out_features, in_features in self.matrices)

    def stored_bytes(self, scheme: str, group_size: int) -> int:
        """Bytes of all matrices as stored."""
        return sum(SCHEMES[scheme].weight_bytes(*matrix, group_size) for matrix in self.matrices)


@dataclass(frozen=True)
class Kernel:
    """The rates of one way to multiply with the weights of a layer.

    Attributes:
        launch_s: Time that does not depend on the work.
        flop_per_s: Where rows are many.
        bytes_per_s: Where rows are few.
        expanded_bytes: Bytes of a weight that is expanded to memory before it is multiplied with; 0 if none is.
    """

    launch_s: float
    flop_per_s: float
    bytes_per_s: float
    expanded_bytes: float = 0.0

    def linears_s(self, num_weights: int, stored_bytes: float, rows: float) -> float:
        """Seconds of all matrix products of a layer; see the module."""
        computing_s = 2 * num_weights * rows / self.flop_per_s
        if not self.expanded_bytes:
            return self.launch_s + max(computing_s, stored_bytes / self.bytes_per_s)
        expanded = num_weights * self.expanded_bytes
        expanding_s = (stored_bytes + expanded) / self.bytes_per_s
        return self.launch_s + expanding_s + max(computing_s, expanded / self.bytes_per_s)


@dataclass(frozen=True)
class AttentionRates:
    """What attention costs beyond the matrix products with weights.

    Attributes:
        memory_bytes_per_s: Of reading and writing in general.
        score_bytes: Bytes moved for a score in prefill; 0 where scores stay on the chip.
        kv_passes: How often the cached keys and values are moved in a decode step.
        flop_per_s: Of the products with keys and values in prefill; infinite where they hide behind the traffic.
    """

    memory_bytes_per_s: float
    score_bytes: float
    kv_passes: float
    flop_per_s: float

    def attention_s(self, size: LayerSize, phase: Phase, pairs: float, activation_bytes: int) -> float:
        """Seconds of attention; see the module."""
        if phase is Phase.DECODE:
            kv_bytes = pairs * 2 * size.kv_size * activation_bytes
            return kv_bytes * self.kv_passes / self.memory_bytes_per_s
        scores = size.num_heads * pairs
        return scores * (self.score_bytes / self.memory_bytes_per_s + 4 * size.head_dim / self.flop_per_s)


@dataclass(frozen=True)
class LayerLaw:
    """The time of a layer at one scheme on one device.

    Attributes:
        size: The layer.
        stored_bytes: Of its weights at the scheme.
        kernels: Ways to multiply with them; for each number of rows the fastest is taken.
        attention: Of the device.
        activation_bytes: Bytes of an element of the cache.
    """

    size: LayerSize
    stored_bytes: float
    kernels: Sequence[Kernel]
    attention: AttentionRates
    activation_bytes: int

    def seconds(self, phase: Phase, load: Load) -> float:
        """Seconds for a micro-batch."""
        linears_s = min(
            kernel.linears_s(self.size.num_weights, self.stored_bytes, load.num_rows) for kernel in self.kernels
        )
        return linears_s + self.attention.attention_s(self.size, phase, load.num_pairs, self.activation_bytes)
