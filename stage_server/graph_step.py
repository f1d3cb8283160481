"""A decode step through some layers as a CUDA graph: recorded once, replayed with other sequences.

A graph repeats its kernels on the same memory with the same shapes. So what changes from step to step is in tensors
that each step fills: states, slots and positions. How many keys are attended to is a shape: it is rounded up, and a
mask hides the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch

from stage_server.decoder_layer import DecoderLayer
from stage_server.kv_cache import LayerCache
from stage_server.layout import BatchLayout
from stage_server.positions import Positions

#: Keys are rounded up to a multiple of this: a graph serves as many steps before the next one is recorded.
KEYS = 256

#: Runs a function once or more, and returns what it gave and what makes it run again in the same memory.
Record = Callable[[Callable[[], torch.Tensor]], tuple[torch.Tensor, Callable[[], None]]]


@dataclass(frozen=True)
class StepShape:
    """What steps must have in common to be one graph.

    Attributes:
        num_sequences: Of the step.
        num_keys: That each sequence may attend to.
        first_slot: Where the slots are a range: its first. They are then read in place.
    """

    num_sequences: int
    num_keys: int
    first_slot: int | None

    @classmethod
    def of(cls, layout: BatchLayout, max_tokens: int) -> Self:
        """The shape of a step in caches of so many tokens a slot."""
        num_keys = min(-(-max(layout.ends) // KEYS) * KEYS, max_tokens)
        slots = layout.contiguous_slots
        return cls(layout.num_sequences, num_keys, None if slots is None else slots.start)


class RepeatedLayout(BatchLayout):
    """The layout of all steps of one shape: of whichever filled it last.

    Args:
        shape: Of the steps.
        device: Where they are computed.
    """

    def __init__(self, shape: StepShape, device: torch.device) -> None:
        one_each = (1,) * shape.num_sequences
        super().__init__(slots=tuple(range(shape.num_sequences)), starts=one_each, counts=one_each, device=device)
        table = torch.zeros(3, shape.num_sequences, dtype=torch.int64, device=device)
        first = shape.first_slot
        vars(self).update(
            table=table,
            slot_index=table[0],
            positions=table[1],
            ends=(1, shape.num_keys),  # a sequence may be the shortest or the longest there can be
            contiguous_slots=None if first is None else slice(first, first + shape.num_sequences),
        )

    def fill(self, layout: BatchLayout) -> None:
        """Takes slots and positions of a step."""
        table = layout.table
        self.table.copy_(table.pin_memory() if self.device.type == "cuda" else table, non_blocking=True)


class GraphStep:
    """Takes one new token of each of some sequences through layers.

    Args:
        layers: In their order, each with its cache.
        shape: Of all its steps.
        hidden: (sequences, hidden) states of the first of them.
        positions: Its positions.
        record: Makes the graph.
    """

    def __init__(
        self,
        layers: Sequence[tuple[DecoderLayer, LayerCache]],
        shape: StepShape,
        hidden: torch.Tensor,
        positions: Positions,
        record: Record,
    ) -> None:
        self._hidden = hidden.clone()
        self._layout = RepeatedLayout(shape, hidden.device)
        self._layout.fill(positions.layout)  # what is recorded also runs, and writes to the caches

        def run_layers() -> torch.Tensor:
            states, repeated = self._hidden, positions.of(self._layout)
            for layer, layer_cache in layers:
                states = layer.forward(states, repeated, layer_cache)
            return states

        self._result, self._replay = record(run_layers)

    def run(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """What the layers make of (sequences, hidden) states of new tokens."""
        self._hidden.copy_(hidden)
        self._layout.fill(positions.layout)
        self._replay()
        return self._result.clone()


class CudaGraphs:
    """Records graphs that share the memory of their temporaries, because only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """Records a function on the thread's current device; see `Record`.

        It runs once before, outside of the graph: kernels are compiled and libraries set up when they first run.
        """
        stream = _recording_stream(torch.cuda.current_device())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # The event loop may begin a copy meanwhile: only what this thread does is part of the graph.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            result = function()
        self._pool = graph.pool()
        return result, graph.replay


@cache
def _recording_stream(device: int) -> torch.cuda.Stream:
    """One for all recordings on a device: libraries keep memory for every stream that they have seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # as torch declares it
