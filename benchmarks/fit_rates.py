"""Fits the rates of `planner_svc/catalog/kernels.yaml` to measured layer times, and says how well they agree.

    python benchmarks/fit_rates.py                      # the figures of LLM-PQ's authors, in tests/data/llm-pq
    python benchmarks/fit_rates.py avx512.json ...      # files of measure_cpu_class.py

Minimizes the sum of squared relative errors over the rates of all schemes of a device and its cost of attention, which
the schemes share. Stored weights are read no faster than a copy on the chip moves them.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from llmpq.device import Phase
from planner_svc.catalog.catalog import read_catalog
from planner_svc.catalog.law import AttentionRates, Kernel, LayerLaw, LayerSize
from planner_svc.workload import Load

AUTHORS = Path(__file__).parent.parent / "tests" / "data" / "llm-pq"
#: Share of the peak bandwidth that copies reach; see the sources in kernels.yaml.
COPY_SHARE = 0.72
#: Their names for what we call by scheme and device.
SCHEMES = {"3": "w3", "4": "w4", "8": "w8", "8:tc": "w8a8", "16": "w16"}
DEVICES = {"T4": "T4", "V100": "V100-32", "P100": "P100-12", "A100": "A100-40"}
#: In the older profile "8" is a kernel of the kind of "4" and "3", not the one of the later runs.
OLD_KERNELS = {"8"}


@dataclass(frozen=True)
class Measured:
    """One measured time of a layer, or of its attention half."""

    device: str
    scheme: str
    phase: Phase
    load: Load
    size: LayerSize
    seconds: float


def authors_layers(path: Path = AUTHORS / "layer_latency_T4_V100_opt30b.csv") -> Iterator[Measured]:
    """Whole layers of OPT-30b on T4, V100 and P100."""
    for row in csv.DictReader(path.read_text().splitlines()):
        batch, prompt, hidden, ffn = (int(row[name]) for name in ("batch", "prompt_len", "h1", "h2"))
        is_prefill = row["phase"] == "prefill"
        load = Load.of(batch, prompt, 0) if is_prefill else Load.of(batch, 1, prompt)
        size = _opt_layer(hidden, ffn)
        phase = Phase.PREFILL if is_prefill else Phase.DECODE
        yield Measured(DEVICES[row["device"]], SCHEMES[row["bit"]], phase, load, size, float(row["latency_ms"]) / 1e3)


def authors_attention_halves(
    path: Path = AUTHORS / "opt175b_attention_layer_profile_A100_V100.csv",
) -> Iterator[Measured]:
    """Attention halves of OPT-175b's layers on A100 and V100."""
    for row in csv.DictReader(path.read_text().splitlines()):
        if row["bit"] in OLD_KERNELS:
            continue
        batch, tokens, past = (int(row[name]) for name in ("batch_size", "input_seq_length", "past_seq_length"))
        phase = Phase.DECODE if tokens == 1 else Phase.PREFILL
        load, size = Load.of(batch, tokens, past), _opt_layer(int(row["h1"]), 0)
        yield Measured(DEVICES[row["device"]], SCHEMES[row["bit"]], phase, load, size, float(row["lat_avg"]))


def own_layers(path: Path) -> Iterator[Measured]:
    """Layers that `measure_cpu_class.py` measured."""
    document = json.loads(path.read_text())
    for point in document["points"]:
        size = LayerSize.of(read_catalog().shape(point["model"]))
        load = Load.of(point["num_sequences"], point["num_tokens"], point["past_tokens"])
        seconds = point["duration_ns"] / 1e9
        yield Measured(document["device"], point["scheme"], Phase(point["phase"]), load, size, seconds)


def predicted_s(point: Measured, kernel: Kernel, attention: AttentionRates) -> float:
    """Seconds by the law."""
    sheet = read_catalog().devices[point.device]
    group_size = 0 if sheet.kind == "cuda" else 64  # theirs were rounded per channel
    stored_bytes = point.size.stored_bytes(point.scheme, group_size)
    law = LayerLaw(point.size, stored_bytes, (kernel,), attention, sheet.activation_bytes)
    return law.seconds(point.phase, point.load)


@dataclass(frozen=True)
class Rates:
    """What is fitted: rates by device and scheme, and the cost of attention that all share."""

    kernels: Mapping[tuple[str, str], Kernel]
    score_bytes: float
    kv_passes: float

    def predicted_s(self, point: Measured) -> float:
        """Seconds by the law."""
        bandwidth = read_catalog().devices[point.device].memory_gb_per_s * 1e9
        attention = AttentionRates(bandwidth, self.score_bytes, self.kv_passes, flop_per_s=inf)
        return predicted_s(point, self.kernels[point.device, point.scheme], attention)


def main() -> None:
    """Prints rates as YAML, and the errors beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    files = parser.parse_args().files
    halves = [point for point in authors_attention_halves() if point.device == "A100-40"]
    for points in [list(own_layers(path)) for path in files] or [[*authors_layers(), *halves]]:
        _report(points)


def _opt_layer(hidden: int, ffn: int) -> LayerSize:
    """A layer of an OPT with heads of 128, or without a feed-forward network only its attention half."""
    halves = [(3 * hidden, hidden), (hidden, hidden)] + ([(ffn, hidden), (hidden, ffn)] if ffn else [])
    return LayerSize(tuple(halves), hidden // 128, 128, hidden)


def _report(points: Sequence[Measured]) -> None:
    rates = _fit(points)
    print(f"attention: {{score_bytes: {rates.score_bytes:.3g}, kv_passes: {rates.kv_passes:.3g}}}")
    errors: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        error = abs(rates.predicted_s(point) / point.seconds - 1)
        errors[point.device, point.scheme][point.phase.name.lower()].append(error)
    for key, by_phase in errors.items():
        kernel = rates.kernels[key]
        rate = f"tflops: {kernel.flop_per_s / 1e12:.3g}, gb_per_s: {kernel.bytes_per_s / 1e9:.3g}"
        said = ", ".join(f"{phase} {np.mean(found):.1%} (worst {max(found):.0%})" for phase, found in by_phase.items())
        print(f"{key[0]:10} {key[1]:5} {{{rate}, launch_ms: {kernel.launch_s * 1e3:.3g}}}  # error: {said}")


def _fit(points: Sequence[Measured]) -> Rates:
    """The best of several starts. The variables are logarithms: score_bytes, kv_passes, and three rates a kernel."""
    keys = list(dict.fromkeys((point.device, point.scheme) for point in points))

    def rates(logs: np.ndarray) -> Rates:
        values = np.exp(logs)
        kernels = {key: Kernel(*values[2 + 3 * number : 5 + 3 * number]) for number, key in enumerate(keys)}
        return Rates(kernels, values[0], values[1])

    def errors(logs: np.ndarray) -> np.ndarray:
        found = rates(logs)
        return np.array([found.predicted_s(point) / point.seconds - 1 for point in points])

    low, high = np.log([[0.01, 1000], [0.01, 100], *(bound for key in keys for bound in _bounds(*key))]).T
    fits = []
    for launch_s in (2e-5, 5e-4, 3e-3):
        middle = (low + high) / 2
        middle[2::3] = np.log(launch_s)
        start = np.clip(middle, low + 1e-6, high - 1e-6)
        fits.append(least_squares(errors, start, bounds=(low, high), loss="soft_l1", f_scale=0.1))
    return rates(min(fits, key=lambda fit: float(fit.cost)).x)


def _bounds(device: str, scheme: str) -> Sequence[tuple[float, float]]:
    """Least and most launch_s, flop_per_s and bytes_per_s of a kernel."""
    sheet = read_catalog().devices[device]
    bandwidth = sheet.memory_gb_per_s * 1e9
    # Decode times of one model do not tell launches from bytes: LLM.int8's many small steps are taken for launches.
    least = 0.5 if scheme == "w8" and sheet.kind == "cuda" else 0.01
    return (1e-6, 2e-2), (0.1 * bandwidth, 1e4 * bandwidth), (least * bandwidth, COPY_SHARE * bandwidth)


if __name__ == "__main__":
    main()
