"""Measures how long one decoder layer, the embedding, the head and a frame take on this device, in both phases."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch

from llmpq.device import LatencyPoint, ModelPart, Phase
from llmpq.frame_chunks import FrameAssembler, messages_of
from llmpq.frames import Frame
from llmpq.plan import LayerPrecision
from llmpq.profile_request import ProfileRequest
from stage_server.device import ComputeDevice
from stage_server.layer_run import LayerRun
from stage_server.layer_stack import STACK_BYTES, LayerStack
from stage_server.layout import BatchLayout
from stage_server.loader import ModelLoader
from stage_server.positions import PositionEncoding
from stage_server.profile_grid import FRAME_ROWS, HEAD_SEQUENCES, LayerGrid, Size
from stage_server.staging import Staging
from stage_server.tensors import payload_of, raw_of, tensor_of

#: By wall time, all points are measured this often, seconds apart: other work on the host adds to some, and the
#: shortest time counts.
_NUM_WALL_PASSES = 2
#: In a pass, a point is the median of this many runs, of more while they are short; by wall time the shortest of them.
_MIN_RUNS, _MAX_RUNS = 3, 7
_ENOUGH_S = 0.04
#: Frames of more rows are taken to be of prompts, of so many rows each.
_MAX_DECODE_ROWS, _PROMPT_ROWS = 32, 128
#: A run goes through as many layers of the stack as fit into this time.
_RUN_S = 0.01


class LayerProfiler:
    """Profiles one model on one device.

    Args:
        loader: Of the model.
        device: The device.
        request: What to measure.
    """

    def __init__(self, loader: ModelLoader, device: ComputeDevice, request: ProfileRequest) -> None:
        self._loader = loader
        self._device = device
        self._request = request
        # The clock of the one thread of a device stands still while the host does something else with its core.
        has_one_thread = device.description.num_threads == 1
        self._clock = time.thread_time_ns if has_one_thread else time.perf_counter_ns
        self._num_passes = 1 if has_one_thread else _NUM_WALL_PASSES
        self._summary: Callable[[list[int]], float] = median if has_one_thread else min
        self._staging = Staging.to(device.torch_device)
        spec = loader.spec
        self._encoding = PositionEncoding(spec, device.torch_device, device.compute_dtype)
        bytes_per_token = 2 * spec.num_kv_heads * spec.head_dim * device.compute_dtype.itemsize
        self._grid = LayerGrid.of(spec.max_positions, bytes_per_token, STACK_BYTES)

    @property
    def num_points(self) -> int:
        """Points that `points` will yield."""
        ends = 2 * len(FRAME_ROWS) + len(HEAD_SEQUENCES)
        return self._num_passes * (len(self._request.schemes) * len(self._grid.sizes) + len(self._grid.contexts) + ends)

    def points(self) -> Iterator[LatencyPoint]:
        """Measures point after point, and by wall time each again in a later pass."""
        for _ in range(self._num_passes):
            yield from self._pass()

    def _pass(self) -> Iterator[LatencyPoint]:
        """Measures every point once."""
        yield from self._frame_points()
        yield from self._embedding_and_head_points()
        source = self._loader.source.layer(0).as_floats()  # latencies do not depend on the weights
        for number, scheme in enumerate(self._request.schemes):
            build = partial(self._loader.build_layer, source, LayerPrecision(scheme, self._request.group_size))
            stack = LayerStack(build, self._loader.spec, self._device)
            for size in self._grid.sizes + (self._grid.contexts if number == 0 else ()):
                yield self._layer_point(stack, scheme, size)

    def _layer_point(self, stack: LayerStack, scheme: str, size: Size) -> LatencyPoint:
        num_sequences, num_tokens, past = size
        layout, hidden = stack.layout(*size), self._hidden(num_sequences * num_tokens)
        cache = stack.caches(num_sequences, past + num_tokens, is_int8=self._request.has_int8_kv_cache)
        positions = self._encoding.at(layout)

        def time_layers(runs: Iterator[LayerRun]) -> int:
            run = next(runs)
            run.step(hidden, positions)  # a stage has made it ready before
            return self._timed(lambda: run.forward(hidden, positions))

        single = stack.runs(1, cache)
        time_layers(single)
        num_layers = min(max(round(_RUN_S * 1e9 / time_layers(single)), 1), len(stack.layers))
        runs = stack.runs(num_layers, cache)
        phase = Phase.DECODE if num_tokens == 1 and past else Phase.PREFILL
        duration_ns = round(self._time_of(lambda: time_layers(runs)) / num_layers)
        return LatencyPoint(ModelPart.LAYER, scheme, phase, *size, duration_ns)

    def _frame_points(self) -> Iterator[LatencyPoint]:
        for rows in FRAME_ROWS:
            yield self._point(ModelPart.FRAME, Phase.PREFILL, rows, partial(self._pass_on, self._hidden(rows)))

    def _pass_on(self, hidden: torch.Tensor) -> None:
        """What a stage does for a frame of (rows, hidden) besides running the model.

        Receiving and sending are part of it: the event loop shares the cores with the thread that computes.
        """
        rows = len(hidden)
        data_type, dimensions, payload = payload_of(hidden)
        sequences = rows if rows <= _MAX_DECODE_ROWS else max(rows // _PROMPT_ROWS, 1)
        slots, starts, counts = list(range(sequences)), [0] * sequences, [rows // sequences] * sequences
        frame = Frame("", 0, Phase.PREFILL, slots, starts, counts, data_type, dimensions, payload)
        assembler = FrameAssembler()
        [received] = filter(None, map(assembler.take, messages_of(frame)))
        layout = BatchLayout(tuple(received.slots), tuple(starts), tuple(counts), self._device.torch_device)
        positions = self._encoding.at(layout)
        for rotary in range(len(self._loader.spec.rotaries)):
            positions.rotation(rotary)
        tensor_of(received, self._staging.send(raw_of(received)).taken() if self._staging else None)

    def _embedding_and_head_points(self) -> Iterator[LatencyPoint]:
        spec = self._loader.spec
        embedding = self._loader.load_embedding()
        for rows in FRAME_ROWS:
            # Sequences of one token: together they may have more rows than a model has learned positions.
            layout = BatchLayout((0,) * rows, (0,) * rows, (1,) * rows, self._device.torch_device)
            token_ids = torch.arange(rows, device=self._device.torch_device) % spec.vocab_size
            yield self._point(ModelPart.EMBEDDING, Phase.PREFILL, rows, partial(embedding.forward, token_ids, layout))
        is_screened = self._device.description.screens_head
        head = self._loader.load_head(embedding if spec.is_tied else None, is_screened=is_screened)
        for rows in HEAD_SEQUENCES:
            yield self._point(ModelPart.HEAD, Phase.DECODE, rows, partial(head.most_likely, self._hidden(rows)))

    def _point(self, part: ModelPart, phase: Phase, rows: int, run: Callable[[], object]) -> LatencyPoint:
        run()
        others = torch.zeros(STACK_BYTES // 4, device=self._device.torch_device)

        def measure() -> int:
            others.add_(1)  # between two frames a stage runs layers, which leave nothing of this part in the caches
            return self._timed(run)

        return LatencyPoint(part, "", phase, rows, 1, 0, max(round(self._time_of(measure)), 1))

    def _hidden(self, rows: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(rows)
        hidden = torch.randn(rows, self._loader.spec.hidden_size, generator=generator)
        return hidden.to(self._device.torch_device, self._device.compute_dtype)

    def _time_of(self, measure: Callable[[], int]) -> float:
        """Nanoseconds that several measurements come to."""
        durations: list[int] = []
        while len(durations) < _MIN_RUNS or (len(durations) < _MAX_RUNS and sum(durations) < _ENOUGH_S * 1e9):
            durations.append(measure())
        return self._summary(durations)

    def _timed(self, run: Callable[[], object]) -> int:
        """Nanoseconds of one run."""
        self._synchronize()
        started_ns = self._clock()
        run()
        self._synchronize()
        return self._clock() - started_ns

    def _synchronize(self) -> None:
        if self._device.torch_device.type == "cuda":
            torch.cuda.synchronize(self._device.torch_device)
