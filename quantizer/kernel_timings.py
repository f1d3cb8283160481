"""How fast linear layers of every scheme are on this CPU, beside what torch has.

Contenders take turns, so that what disturbs one disturbs all, and each finds its weights in memory, not in the cache:
between two of its turns the others have read theirs. Times are medians; ratios are to the faster of torch's two float32
products.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from llmpq.plan import LayerPrecision
from llmpq.schemes import SCHEMES
from quantizer.dynamic_int8 import DynamicInt8Linear
from quantizer.gemm import linear
from quantizer.kernel_choice import cpu_name
from quantizer.linear import build_linear
from quantizer.methods import round_weight
from quantizer.multi_path import MultiPathLinear
from quantizer.native.library import kernels
from quantizer.path_timing import Forward
from quantizer.rounding import round_rows

_GROUP_SIZE = 64
_FLOAT_PRODUCTS = ("fp32 torch", "fp32 oneDNN")
#: Turns that each contender gets: at least so many, and more until so many seconds have passed.
_MIN_TURNS, _MAX_TURNS, _ENOUGH_S = 9, 51, 1.5


def _no_path(_rows: int) -> str:
    return ""


@dataclass(frozen=True)
class Contender:
    """A way to multiply, and what it is called at a number of rows."""

    forward: Forward
    path: Callable[[int], str] = _no_path


@dataclass(frozen=True)
class Timing:
    """A contender at a size: its median time, and how many times faster it is than float32."""

    name: str
    path: str
    rows: int
    in_features: int
    out_features: int
    ms: float
    gflop_per_s: float
    ratio: float


def describe_process() -> dict[str, str]:
    """What of the machine this process uses."""
    native = kernels()
    return {
        "cpu": cpu_name(),
        "threads": str(torch.get_num_threads()),
        "native kernels": native.instruction_set if native is not None else "none",
        "torch": f"{torch.__version__} for {torch.backends.cpu.get_cpu_capability()}",
        "oneDNN": os.environ.get("ONEDNN_MAX_CPU_ISA", "not limited"),
    }


def make_contenders(out_features: int, in_features: int) -> dict[str, Contender]:
    """All contenders, over the same random weight."""
    weight = torch.randn(out_features, in_features)
    contenders = {
        "fp32 torch": Contender(lambda x: torch.nn.functional.linear(x, weight)),
        "fp32 oneDNN": Contender(lambda x: linear(x, weight, None)),
    }
    for scheme in SCHEMES:
        rounded = round_weight(weight, LayerPrecision(scheme, _GROUP_SIZE))
        layer = build_linear(rounded, None, scheme, compute_dtype=torch.float32)
        name = f"{scheme} group {_GROUP_SIZE}" if SCHEMES[scheme].is_grouped else scheme
        path = layer.path_at if isinstance(layer, MultiPathLinear) else _no_path
        contenders[name] = Contender(layer.forward, path)
    contenders["int8 a token, oneDNN"] = Contender(DynamicInt8Linear(round_rows(weight), None).forward)
    contenders["int4 group 64, torch bf16"] = Contender(_torch_int4(weight))
    return contenders


def time_contenders(
    contenders: Mapping[str, Contender], in_features: int, out_features: int, rows: int
) -> Iterator[Timing]:
    """Lets the contenders take turns at one number of rows."""
    x = torch.randn(rows, in_features)
    for contender in contenders.values():
        contender.forward(x)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    begun = time.perf_counter()
    for turn in range(_MAX_TURNS):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender.forward(x)
            times[name].append(time.perf_counter() - started)
        if turn + 1 >= _MIN_TURNS and time.perf_counter() - begun > _ENOUGH_S:
            break
    seconds = {name: median(durations) for name, durations in times.items()}
    reference = min(seconds[name] for name in _FLOAT_PRODUCTS)
    gflop = 2 * rows * in_features * out_features / 1e9
    for name, duration in seconds.items():
        path = contenders[name].path(rows)
        sizes = rows, in_features, out_features
        yield Timing(name, path, *sizes, duration * 1e3, gflop / duration, reference / duration)


def _torch_int4(weight: torch.Tensor) -> Forward:
    """Torch's weight-only product of 4 bits, of which only the one for bf16 is vectorized; its inputs are converted."""
    codes = torch.randint(0, 16, weight.shape, dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)  # noqa: SLF001 the operator has no public name
    scales_and_zeros = torch.ones(weight.shape[1] // _GROUP_SIZE, weight.shape[0], 2, dtype=torch.bfloat16)
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu  # noqa: SLF001 the same
    return lambda x: multiply(x.bfloat16(), packed, _GROUP_SIZE, scales_and_zeros).float()
