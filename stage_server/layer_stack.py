"""Copies of one layer, run one after another as a stage runs its layers."""

from collections.abc import Callable, Iterator
from itertools import cycle

from stage_server.decoder_layer import DecoderLayer
from stage_server.device import ComputeDevice
from stage_server.families import DecoderSpec
from stage_server.graph_step import KEYS
from stage_server.kv_cache import KvCache
from stage_server.layer_run import LayerRun
from stage_server.layout import BatchLayout

#: Weights of all copies, and caches of all of them: more than the last cache of common CPUs holds.
STACK_BYTES = 64 * 2**20


class LayerStack:
    """Runs layers in turn, so that each finds its weights in memory, as on a stage, but code and activations near.

    A layer that ran again and again would find its weights in the cache, and seem twice as fast as it will be.

    Args:
        build: Makes a copy of the layer.
        spec: Of its model, which does not have fewer layers than the stack.
        device: Where it is.
    """

    def __init__(self, build: Callable[[], DecoderLayer], spec: DecoderSpec, device: ComputeDevice) -> None:
        layer = build()
        num_layers = max(min(-(-STACK_BYTES // layer.memory_bytes), spec.num_layers), 1)
        self.layers = (layer, *(build() for _ in range(num_layers - 1)))
        self._spec = spec
        self._device = device

    def caches(self, num_sequences: int, num_tokens: int, *, is_int8: bool) -> KvCache:
        """Caches for so many sequences of so many tokens: one a layer, or as many as take `STACK_BYTES`."""
        spec = self._spec
        if self._device.torch_device.type == "cuda":  # as many keys as a graph of a stage would read
            num_tokens = -(-num_tokens // KEYS) * KEYS
        cache_bytes = num_sequences * num_tokens * 2 * spec.num_kv_heads * spec.head_dim
        cache_bytes *= self._device.compute_dtype.itemsize
        return KvCache(
            num_layers=max(min(len(self.layers), STACK_BYTES // cache_bytes), 1),
            num_slots=num_sequences,
            num_kv_heads=spec.num_kv_heads,
            max_tokens=num_tokens,
            head_dim=spec.head_dim,
            dtype=self._device.compute_dtype,
            device=self._device.torch_device,
            is_int8=is_int8,
        )

    def runs(self, num_layers: int, cache: KvCache) -> Iterator[LayerRun]:
        """Without end: each of so many layers, beginning behind those of the one before."""
        starts = range(0, len(self.layers), num_layers)
        numbers = ([start + number for number in range(num_layers)] for start in starts)
        made = [
            LayerRun(
                [self.layers[number % len(self.layers)] for number in of_run],
                [cache.layers[number % len(cache.layers)] for number in of_run],
            )
            for of_run in numbers
        ]
        return cycle(made)

    def layout(self, num_sequences: int, num_tokens: int, past: int) -> BatchLayout:
        """Sequences of equal lengths in the first slots."""
        return BatchLayout(
            slots=tuple(range(num_sequences)),
            starts=(past,) * num_sequences,
            counts=(num_tokens,) * num_sequences,
            device=self._device.torch_device,
        )
