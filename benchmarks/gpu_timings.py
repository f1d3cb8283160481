"""What `gpu_kernels.py` measures: a card's copy bandwidth and cuBLAS rates, and our linear layers on it."""

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
import triton
from torch.nn import functional

from quantizer.cuda.chip import Chip, Kernel, supported_kernels
from quantizer.cuda.linears import TritonLinear, group_linear, int8_linear, rounding_linear
from quantizer.rounded import GroupRounded, RowRounded
from quantizer.rounding import round_rows
from quantizer.tiles import ACTIVATION_GROUP_SIZE

#: A replay's time is the median of so many.
_NUM_REPLAYS = 15
#: Layers of a kind that are read one after another take this many times the second-level cache: each finds its weight
#: in memory, as in a model.
_CACHES = 3
#: Rows at which results are compared with float64.
_CHECKED_ROWS = (1, 3, 16, 200, 2048)
#: Error of a whole result, relative to it, that rounding to a type explains.
_TOLERANCE = {torch.float16: 2**-10, torch.bfloat16: 2**-7}


@dataclass(frozen=True)
class Card:
    """A device, and what it reaches at best.

    Attributes:
        device: As torch names it.
        facts: What the figures hold for.
        dtype: Type of activations.
        cache_bytes: Of its second-level cache.
        copy_bytes_per_s: Bytes read and written by a copy.
        cublas_flop_per_s: Of a large square product.
    """

    device: torch.device
    facts: dict[str, str]
    dtype: torch.dtype
    cache_bytes: int
    copy_bytes_per_s: float
    cublas_flop_per_s: float


@dataclass(frozen=True)
class Timing:
    """A kind of layer at a size.

    Attributes:
        scheme: What kind, "cublas" for the product with a weight of the type of the activations.
        path: The one that serving takes, chosen as it chooses.
        ms: Its time.
        path_ms: That of every path.
        copy_share: Bytes that have to be read, over the time, over the bandwidth of a copy.
        flop_share: FLOP over the time, over the rate of a large product of cuBLAS.
        cublas_ratio: cuBLAS's time at this size, over the time.
    """

    scheme: str
    out_features: int
    in_features: int
    rows: int
    path: str
    ms: float
    path_ms: dict[str, float]
    copy_share: float
    flop_share: float
    cublas_ratio: float


def measure_card(device: torch.device) -> Card:
    """Describes a device and measures what it reaches."""
    properties = torch.cuda.get_device_properties(device)
    dtype = torch.bfloat16 if properties.major >= 8 else torch.float16  # noqa: PLR2004 Ampere
    source = torch.empty(2**29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_ms = time_calls([partial(target.copy_, source)])
    del source, target
    size = 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product_ms = time_calls([partial(functional.linear, left, right)])
    facts = {
        "card": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "processors": str(properties.multi_processor_count),
        "memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "second-level cache": f"{properties.L2_cache_size / 2**20:.0f} MiB",
        "driver": _driver_version(),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "triton": triton.__version__,
        "activations": str(dtype).removeprefix("torch."),
    }
    return Card(
        device=device,
        facts=facts,
        dtype=dtype,
        cache_bytes=properties.L2_cache_size,
        copy_bytes_per_s=2 * 2**29 / copy_ms * 1e3,
        cublas_flop_per_s=2 * size**3 / product_ms * 1e3,
    )


def schemes_of(chip: Chip) -> dict[str, Callable[[torch.Size, torch.device], TritonLinear]]:
    """What makes a layer of random weights, by the name of its kind, for the kinds that a chip can run."""
    makers: dict[str, Callable[[torch.Size, torch.device], TritonLinear]] = {}
    kernels = supported_kernels(chip.capability)
    if Kernel.FUSED in kernels:
        makers["w8"] = lambda shape, device: int8_linear(_random_rows(shape, device), None, chip)
        for bits in (4, 3):
            makers[f"w{bits}"] = partial(_random_group_layer, bits=bits, chip=chip)
    if Kernel.INT8_PRODUCT in kernels:
        makers["w8a8"] = partial(_random_rounding_layer, chip=chip, activation_group_size=ACTIVATION_GROUP_SIZE)
        makers["w8a8 groups of 128"] = partial(_random_rounding_layer, chip=chip, activation_group_size=128)
    if Kernel.INT8_CUBLAS in kernels:
        makers["w8a8 per token"] = partial(_random_rounding_layer, chip=chip, activation_group_size=0)
    return makers


def check(layer: TritonLinear, card: Card, activation_group_size: int | None) -> float:
    """The largest error of any path at any of `_CHECKED_ROWS`, as a share of what rounding to the type explains.

    Args:
        layer: To be checked.
        card: That it is on.
        activation_group_size: Activations are rounded in groups of so many, per token if 0, not at all if None.
    """
    weight = layer.dequantized().double()
    errors = []
    for rows in _CHECKED_ROWS:
        x = torch.randn(rows, layer.in_features, device=card.device).to(card.dtype)
        inputs = x.double() if activation_group_size is None else _rounded(x, activation_group_size)
        expected = inputs @ weight.T
        for forward in layer.paths().values():
            error = ((forward(x).double() - expected).norm() / expected.norm()).item()
            errors.append(error / _TOLERANCE[card.dtype])
    return max(errors)


def time_layers(
    scheme: str, layers: Sequence[TritonLinear], card: Card, rows: Sequence[int], cublas_ms: Mapping[int, float]
) -> Iterator[Timing]:
    """Times every path of equal layers, at several numbers of rows.

    Args:
        scheme: What they are called.
        layers: `num_copies` of them.
        card: That they are on.
        rows: How many.
        cublas_ms: cuBLAS's time for each of `rows`.
    """
    first = layers[0]
    first.choose_paths(card.device, card.dtype)
    for num_rows in rows:
        x = torch.randn(num_rows, first.in_features, device=card.device).to(card.dtype)
        path_ms = {path: time_calls([partial(layer.paths()[path], x) for layer in layers]) for path in first.paths()}
        yield _timing(
            scheme,
            (first.out_features, first.in_features),
            num_rows,
            card,
            first.path_at(num_rows),
            path_ms,
            first.weight_bytes,
            cublas_ms[num_rows],
        )


def time_cublas(shape: torch.Size, card: Card, rows: Sequence[int]) -> Iterator[Timing]:
    """Times cuBLAS's product with a weight of the type of the activations."""
    copies = range(num_copies(shape.numel() * 2, card))
    weights = [torch.randn(shape, device=card.device).to(card.dtype) for _ in copies]
    for num_rows in rows:
        x = torch.randn(num_rows, shape[1], device=card.device).to(card.dtype)
        ms = time_calls([partial(functional.linear, x, weight) for weight in weights])
        yield _timing("cublas", shape, num_rows, card, "cublas", {"cublas": ms}, weights[0].nbytes, ms)


def num_copies(weight_bytes: int, card: Card) -> int:
    """Layers with weights of a size that together exceed the second-level cache by far."""
    return max(2, -(-_CACHES * card.cache_bytes // weight_bytes))


def time_calls(calls: Sequence[Callable[[], object]]) -> float:
    """Milliseconds of one of several calls, captured in one CUDA graph: what the host does meanwhile does not count."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    durations = []
    for _ in range(_NUM_REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        durations.append(begin.elapsed_time(end) / len(calls))
    return median(durations)


def _timing(  # noqa: PLR0917 each is another number
    scheme: str,
    shape: Sequence[int],
    rows: int,
    card: Card,
    path: str,
    path_ms: dict[str, float],
    weight_bytes: int,
    cublas_ms: float,
) -> Timing:
    seconds = path_ms[path] / 1e3
    num_bytes = weight_bytes + rows * shape[1] * card.dtype.itemsize
    return Timing(
        scheme=scheme,
        out_features=shape[0],
        in_features=shape[1],
        rows=rows,
        path=path,
        ms=path_ms[path],
        path_ms=path_ms,
        copy_share=num_bytes / seconds / card.copy_bytes_per_s,
        flop_share=2 * rows * shape[0] * shape[1] / seconds / card.cublas_flop_per_s,
        cublas_ratio=cublas_ms / path_ms[path],
    )


def _random_group_layer(shape: torch.Size, device: torch.device, *, bits: int, chip: Chip) -> TritonLinear:
    """Groups of 64, with zero points that are not all alike."""
    out_features, in_features = shape
    num_groups = in_features // 64
    rounded = GroupRounded(
        torch.randint(0, 2**bits, shape, dtype=torch.uint8, device=device),
        torch.rand(out_features, num_groups, device=device).add_(0.5).mul_(0.01).half(),
        torch.randint(0, 2**bits, (out_features, num_groups), dtype=torch.uint8, device=device),
        bits,
        64,
    )
    return group_linear(rounded, None, chip)


def _random_rounding_layer(
    shape: torch.Size, device: torch.device, *, chip: Chip, activation_group_size: int
) -> TritonLinear:
    return rounding_linear(_random_rows(shape, device), None, chip, activation_group_size)


def _random_rows(shape: torch.Size, device: torch.device) -> RowRounded:
    codes = torch.randint(-127, 128, shape, dtype=torch.int8, device=device)
    return RowRounded(codes, torch.rand(shape[0], device=device).add_(0.5).mul_(0.001))


def _rounded(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """Activations as w8a8 multiplies them, float64."""
    rounded = [round_rows(group) for group in x.split(group_size or x.shape[1], dim=1)]
    return torch.cat([group.codes.double() * group.scales[:, None].double() for group in rounded], dim=1)


def _driver_version() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]  # noqa: S603 fixed
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"
