"""Checks and times the CUDA kernels on a GPU, and says which targets they meet.

    python benchmarks/gpu_kernels.py [--shape OUTxIN ...] [--rows N ...] [--scheme NAME ...] [--json FILE]

Each kernel is compared with float64 first. Times are those of layers of one kind one after another, as many as exceed
the second-level cache by far, captured in a CUDA graph. Beside each time stand the bytes that the scheme must read,
over the time, as a share of the bandwidth of a copy on this card; FLOP, over the time, as a share of the rate of a
large product of cuBLAS; and how many times faster than cuBLAS at 16 bits the kernel is at this size. The time is that
of the path that serving would choose. Exit code 1 says that a result is wrong, that a target is missed, or that there
is no GPU; 2 that a target was not measured.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_timings import Timing

#: Layers of a model of 7 billion parameters.
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))
ROWS = (1, 2, 4, 8, 16, 64, 256, 2048)
HEADER = f"{'rows':>5}  {'kernel':20} {'ms':>8} {'copy':>6} {'FLOP':>6} {'cuBLAS':>7}  path"


@dataclass(frozen=True)
class Target:
    """What kernels are to reach.

    Attributes:
        schemes: Of which kernels.
        first_rows: From how many rows on.
        last_rows: To how many.
        column: Of `Timing`.
        least: Its least value.
    """

    schemes: tuple[str, ...]
    first_rows: int
    last_rows: int
    column: str
    least: float

    def is_about(self, timing: "Timing") -> bool:
        """Whether a timing has to reach it."""
        return timing.scheme in self.schemes and self.first_rows <= timing.rows <= self.last_rows


TARGETS = (
    Target(("w8", "w4", "w3"), 1, 16, "copy_share", 0.7),
    Target(("w4", "w3"), 2048, 2048, "cublas_ratio", 0.75),
    Target(("w8a8",), 2048, 2048, "cublas_ratio", 1.3),
)


def main() -> None:
    """Prints a line for each kernel and size and one for each target; writes all as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", type=_shape, default=SHAPES, help="outputs x inputs")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--scheme", nargs="+", default=[], help="all by default")
    parser.add_argument("--json", type=Path, help="also write to this file")
    settings = parser.parse_args()
    import torch  # noqa: PLC0415 takes seconds, which --help need not

    if not torch.cuda.is_available():
        sys.exit(f"There is no CUDA device that torch {torch.__version__} can use: nothing was measured.")
    sys.exit(_run(settings))


def _run(settings: argparse.Namespace) -> int:
    import gpu_timings  # noqa: PLC0415 needs Triton
    import torch  # noqa: PLC0415 see main

    from quantizer.cuda.chip import Chip  # noqa: PLC0415 see main

    device = torch.device("cuda", torch.cuda.current_device())
    card = gpu_timings.measure_card(device)
    for name, value in card.facts.items():
        print(f"{name}: {value}")
    print(f"copy: {card.copy_bytes_per_s / 1e9:.0f} GB/s; cuBLAS: {card.cublas_flop_per_s / 1e12:.1f} TFLOP/s")
    makers = gpu_timings.schemes_of(Chip.of(device))
    timings: list[Timing] = []
    errors: dict[str, float] = {}
    unknown = set(settings.scheme) - set(makers)
    if unknown:
        sys.exit(f"No kernel is called {', '.join(sorted(unknown))} on this card; there are {', '.join(makers)}.")
    for shape in map(torch.Size, settings.shape):
        print(f"\n{shape[1]} inputs, {shape[0]} outputs\n{HEADER}")
        cublas = list(gpu_timings.time_cublas(shape, card, settings.rows))
        _show(cublas)
        timings += cublas
        cublas_ms = {timing.rows: timing.ms for timing in cublas}
        for scheme in settings.scheme or makers:
            layers = [makers[scheme](shape, device)]
            errors[f"{scheme} {shape[0]}x{shape[1]}"] = gpu_timings.check(
                layers[0], card, _activation_group_size(scheme)
            )
            num_more = gpu_timings.num_copies(layers[0].weight_bytes, card) - 1
            layers += [makers[scheme](shape, device) for _ in range(num_more)]
            measured = list(gpu_timings.time_layers(scheme, layers, card, settings.rows, cublas_ms))
            _show(measured)
            timings += measured
    is_right = _report_errors(errors)
    results = judge(timings)
    print("\n" + "\n".join(describe(*result) for result in results))
    if settings.json:
        document = {
            "card": {**asdict(card), "device": str(card.device), "dtype": str(card.dtype)},
            "errors": errors,
            "timings": [asdict(timing) for timing in timings],
            "targets": [{**asdict(target), "reached": reached} for target, reached in results],
        }
        settings.json.write_text(json.dumps(document, indent=1))
    if not is_right or any(reached < target.least for target, reached in results):
        return 1
    return 0 if len(results) == len(TARGETS) else 2


def judge(timings: "Sequence[Timing]") -> list[tuple[Target, float]]:
    """Each target that there are timings for, with the least value that any of them has."""
    results = []
    for target in TARGETS:
        values = [getattr(timing, target.column) for timing in timings if target.is_about(timing)]
        if values:
            results.append((target, min(values)))
    return results


def describe(target: Target, reached: float) -> str:
    """A line about a target."""
    verdict = "reached" if reached >= target.least else "MISSED"
    rows = f"{target.first_rows} to {target.last_rows}" if target.first_rows < target.last_rows else target.last_rows
    of = {"copy_share": "of a copy's bandwidth", "cublas_ratio": "times cuBLAS's speed"}[target.column]
    return f"{verdict}: {', '.join(target.schemes)} at {rows} rows: {reached:.2f} {of}, of {target.least} asked for"


def _shape(text: str) -> tuple[int, int]:
    """OUTxIN as numbers."""
    out_features, in_features = map(int, text.split("x"))
    return out_features, in_features


def _activation_group_size(scheme: str) -> int | None:
    """How activations are rounded: by groups of this size, per token if 0, not at all if None."""
    from quantizer.tiles import ACTIVATION_GROUP_SIZE  # noqa: PLC0415 brings torch, see main

    return {"w8a8": ACTIVATION_GROUP_SIZE, "w8a8 groups of 128": 128, "w8a8 per token": 0}.get(scheme)


def _show(timings: "Sequence[Timing]") -> None:
    for timing in timings:
        shares = f"{timing.copy_share:6.1%} {timing.flop_share:6.1%} {timing.cublas_ratio:7.2f}"
        print(f"{timing.rows:5}  {timing.scheme:20} {timing.ms:8.4f} {shares}  {timing.path}")


def _report_errors(errors: dict[str, float]) -> bool:
    """Says which results are wrong; whether none is."""
    wrong = {name: error for name, error in errors.items() if not error <= 1}
    for name, error in wrong.items():
        print(f"WRONG: {name} is off by {error:.1f} times what rounding explains")
    if not wrong:
        worst = max(errors.values(), default=0)
        print(f"\nAll results are right: the largest error is {worst:.2f} of what rounding explains.")
    return not wrong


if __name__ == "__main__":
    main()
