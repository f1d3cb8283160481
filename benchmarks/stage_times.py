"""What a stage computes in a micro-batch: its layers, and the head beside them.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/stage_times.py --model build/models/SmolLM2-135M-Instruct.Q4_1.gguf

Medians in milliseconds of the second half of the layers at one scheme, on the threads that torch is given. States are
random, and so are more alike than real ones: the head has more tokens to look at closely than with most of those.
"""

import argparse
import time
from collections.abc import Callable
from itertools import starmap
from statistics import median

import torch

from llmpq.plan import LayerPrecision
from stage_server.kv_cache import KvCache
from stage_server.layer_run import LayerRun
from stage_server.layout import BatchLayout
from stage_server.loader import ModelLoader
from stage_server.model_slice import ModelSlice
from stage_server.positions import PositionEncoding

CPU = torch.device("cpu")
#: Sequences, tokens cached of each, new tokens of each.
MICRO_BATCHES = (
    (1, 150, 1),
    (8, 150, 1),
    (16, 150, 1),
    (32, 150, 1),
    (16, 600, 1),
    (1, 0, 128),
    (4, 0, 128),
    (16, 0, 128),
)
NUM_RUNS = 9


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--scheme", default="w8a8")
    settings = parser.parse_args()
    torch.set_grad_enabled(False)
    loader = ModelLoader(settings.model, CPU, torch.float32)
    part = second_half(loader, LayerPrecision(settings.scheme))
    head = part.head
    assert head is not None  # noqa: S101 the second half ends in it
    print(f"{len(part.layers)} layers at {settings.scheme}, {torch.get_num_threads()} thread(s)")
    print("| sequences x (cached + new) | layers | with an int8 cache | most likely tokens | logits |")
    print("|---|---|---|---|---|")
    for num_sequences, cached, new in MICRO_BATCHES:
        layout = BatchLayout(tuple(range(num_sequences)), (cached,) * num_sequences, (new,) * num_sequences, CPU)
        states = torch.randn(num_sequences * new, loader.spec.hidden_size)
        caches = [empty_cache(part, loader, num_sequences, cached + new, is_int8=is_int8) for is_int8 in (False, True)]
        last = states[new - 1 :: new]
        jobs = (
            *((part.hidden_states, (states, layout, LayerRun(part.layers, cache.layers))) for cache in caches),
            (head.most_likely, (last,)),
            (head.logits, (last,)),
        )
        times = " | ".join(f"{each:.2f}" for each in starmap(milliseconds, jobs))
        print(f"| {num_sequences} x ({cached} + {new}) | {times} |", flush=True)


def second_half(loader: ModelLoader, precision: LayerPrecision) -> ModelSlice:
    """The layers from the middle on, with the head."""
    indices = range(loader.spec.num_layers // 2, loader.spec.num_layers)
    layers = tuple(loader.build_layer(loader.source.layer(index), precision) for index in indices)
    encoding = PositionEncoding(loader.spec, CPU, torch.float32)
    return ModelSlice(layers, None, loader.load_head(None, is_screened=True), encoding)


def empty_cache(part: ModelSlice, loader: ModelLoader, num_slots: int, max_tokens: int, *, is_int8: bool) -> KvCache:
    """A cache that has no more room than the micro-batch needs."""
    return KvCache(
        num_layers=len(part.layers),
        num_slots=num_slots,
        num_kv_heads=loader.spec.num_kv_heads,
        max_tokens=max_tokens,
        head_dim=loader.spec.head_dim,
        dtype=torch.float32,
        device=CPU,
        is_int8=is_int8,
    )


def milliseconds(run: Callable[..., object], arguments: tuple[object, ...]) -> float:
    """The median of some runs, after one that does not count."""
    run(*arguments)
    durations = []
    for _ in range(NUM_RUNS):
        started = time.perf_counter()
        run(*arguments)
        durations.append(time.perf_counter() - started)
    return median(durations) * 1e3


if __name__ == "__main__":
    main()
