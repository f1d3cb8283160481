"""Measures how long one decoder layer, the embedding and the head take on this device, in both phases."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch

from llmpq.device import LatencyPoint, ModelPart, Phase
from llmpq.plan import LayerPrecision
from stage_server.device import ComputeDevice
from stage_server.kv_cache import KvCache
from stage_server.layout import BatchLayout
from stage_server.loader import ModelLoader
from stage_server.positions import PositionEncoding

#: (sequences, prompt tokens) of the prefill points. Small, because they are measured before the first batch can start;
#: spread over both axes, because attention grows with the square of the second.
PREFILL_GRID = ((1, 16), (1, 64), (1, 256), (1, 512), (4, 64), (4, 128))
#: (sequences, cached tokens) of the decode points.
DECODE_GRID = ((1, 64), (1, 512), (4, 128), (8, 64), (8, 512), (16, 192), (32, 96))
#: Sequences at which the head is measured; rows at which the embedding is.
HEAD_GRID = (1, 4, 16)
EMBEDDING_GRID = (1, 64, 512)

#: A point is the median of this many runs, of more while they are short.
_MIN_RUNS, _MAX_RUNS = 3, 7
_ENOUGH_S = 0.1
#: More than fits into the last cache of common CPUs; see LayerProfiler.
_MAX_EVICTION_BYTES = 64 * 2**20


class LayerProfiler:
    """Profiles one model on one device.

    Before each run of a layer as many bytes are touched as the model's other layers take. A stage that decodes runs
    them all before it comes back to this one, whose weights then come from memory; a layer that is run again and again
    would find them in the cache, and seem twice as fast as it will be.
    """

    def __init__(self, loader: ModelLoader, device: ComputeDevice, schemes: tuple[str, ...], group_size: int) -> None:
        self._loader = loader
        self._device = device
        self._schemes = schemes
        self._group_size = group_size
        self._others = torch.empty(0)
        longest = loader.spec.max_positions - 1
        self._prefill = tuple((sequences, tokens) for sequences, tokens in PREFILL_GRID if tokens <= longest)
        self._decode = tuple((sequences, past) for sequences, past in DECODE_GRID if past < longest)

    @property
    def num_points(self) -> int:
        """Points that `points` will yield."""
        per_scheme = len(self._prefill) + len(self._decode)
        return len(self._schemes) * per_scheme + len(HEAD_GRID) + len(EMBEDDING_GRID)

    def points(self) -> Iterator[LatencyPoint]:
        """Measures point after point; each is the median of several runs after a warm-up."""
        yield from self._embedding_and_head_points()
        source = self._loader.source.layer(0).as_floats()  # latencies do not depend on the weights
        for scheme in self._schemes:
            layer = self._loader.build_layer(source, LayerPrecision(scheme, self._group_size))
            self._others = self._stand_in(layer.memory_bytes * (self._loader.spec.num_layers - 1))
            for num_sequences, num_tokens in self._prefill:
                run = self._layer_run(layer.forward, num_sequences, num_tokens, past=0)
                yield _point(ModelPart.LAYER, scheme, Phase.PREFILL, (num_sequences, num_tokens, 0), self._time(run))
            for num_sequences, past in self._decode:
                run = self._layer_run(layer.forward, num_sequences, 1, past=past)
                yield _point(ModelPart.LAYER, scheme, Phase.DECODE, (num_sequences, 1, past), self._time(run))

    def _embedding_and_head_points(self) -> Iterator[LatencyPoint]:
        spec = self._loader.spec
        embedding = self._loader.load_embedding()
        for rows in EMBEDDING_GRID:
            layout = self._layout(rows, 1, past=0)
            token_ids = torch.arange(rows, device=self._device.torch_device) % spec.vocab_size
            duration = self._time(partial(embedding.forward, token_ids, layout))
            yield _point(ModelPart.EMBEDDING, "", Phase.PREFILL, (rows, 1, 0), duration)
        head = self._loader.load_head(embedding if spec.is_tied else None)
        for rows in HEAD_GRID:
            hidden = self._hidden(rows)
            duration = self._time(partial(head.logits, hidden))
            yield _point(ModelPart.HEAD, "", Phase.DECODE, (rows, 1, 0), duration)

    def _layer_run(
        self,
        forward: Callable[..., torch.Tensor],
        num_sequences: int,
        num_tokens: int,
        *,
        past: int,
    ) -> Callable[[], object]:
        spec = self._loader.spec
        cache = KvCache(
            num_layers=1,
            num_slots=num_sequences,
            num_kv_heads=spec.num_kv_heads,
            max_tokens=past + num_tokens,
            head_dim=spec.head_dim,
            dtype=self._device.compute_dtype,
            device=self._device.torch_device,
        )
        layout = self._layout(num_sequences, num_tokens, past=past)
        hidden = self._hidden(layout.num_rows)
        encoding = PositionEncoding(spec, self._device.torch_device, self._device.compute_dtype)
        return partial(forward, hidden, encoding.at(layout), cache.layers[0])

    def _layout(self, num_sequences: int, num_tokens: int, *, past: int) -> BatchLayout:
        return BatchLayout(
            slots=tuple(range(num_sequences)),
            starts=(past,) * num_sequences,
            counts=(num_tokens,) * num_sequences,
            device=self._device.torch_device,
        )

    def _hidden(self, rows: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(rows)
        hidden = torch.randn(rows, self._loader.spec.hidden_size, generator=generator)
        return hidden.to(self._device.torch_device, self._device.compute_dtype)

    def _time(self, run: Callable[[], object]) -> int:
        """Median nanoseconds of a run, the warm-up not counted."""
        run()
        durations: list[int] = []
        while len(durations) < _MIN_RUNS or (len(durations) < _MAX_RUNS and sum(durations) < _ENOUGH_S * 1e9):
            self._others.add_(1)
            self._synchronize()
            started_ns = time.perf_counter_ns()
            run()
            self._synchronize()
            durations.append(time.perf_counter_ns() - started_ns)
        return round(median(durations))

    def _stand_in(self, num_bytes: int) -> torch.Tensor:
        """Memory to touch in place of so many bytes of weights."""
        num_bytes = min(num_bytes, _MAX_EVICTION_BYTES)
        return torch.zeros(num_bytes // 4, device=self._device.torch_device)

    def _synchronize(self) -> None:
        if self._device.torch_device.type == "cuda":
            torch.cuda.synchronize(self._device.torch_device)


def _point(part: ModelPart, scheme: str, phase: Phase, size: tuple[int, int, int], duration_ns: int) -> LatencyPoint:
    num_sequences, num_tokens, past_tokens = size
    return LatencyPoint(part, scheme, phase, num_sequences, num_tokens, past_tokens, duration_ns)
