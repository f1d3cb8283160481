"""Holding a CPU stage to an instruction set. Takes effect only before torch is imported, so this module must not."""

import os
from pathlib import Path

from llmpq.errors import InvalidInputError

#: What each class asks of torch's own kernels, of MKL and of oneDNN, from the newest to the oldest.
CPU_CLASSES: dict[str, dict[str, str]] = {
    "avx512": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "sse4": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}

#: The flag in /proc/cpuinfo that a class stands on.
_FLAG_OF_CLASS = {"avx512": "avx512f", "avx2": "avx2", "sse4": "sse4_1"}


def available_cpu_classes() -> tuple[str, ...]:
    """The classes that this CPU can compute with, newest first."""
    flags = _cpu_flags()
    return tuple(cpu_class for cpu_class, flag in _FLAG_OF_CLASS.items() if flag in flags)


def restrict_cpu(cpu_class: str, cores: tuple[int, ...]) -> None:
    """Holds this process to a class and to cores (none: all).

    Raises:
        InvalidInputError: The CPU lacks the class, or a core does not exist.
    """
    available = available_cpu_classes()
    if cpu_class and cpu_class not in available:
        raise InvalidInputError(
            f"This CPU has no {cpu_class}; it can run: {', '.join(available)}.",
            subject="cpu_class",
        )
    os.environ.update(CPU_CLASSES.get(cpu_class, {}))
    if cores:
        usable = os.sched_getaffinity(0)
        if not set(cores) <= usable:
            raise InvalidInputError(
                f"Cores {sorted(set(cores) - usable)} cannot be used here; usable: {sorted(usable)}.",
                subject="cores",
            )
        os.sched_setaffinity(0, cores)
        os.environ["OMP_NUM_THREADS"] = str(len(cores))


def _cpu_flags() -> frozenset[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()
