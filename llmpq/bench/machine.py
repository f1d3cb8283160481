"""What figures hold for: the machine they were taken on, and how busy it was."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

#: Instruction sets that decide how fast products are, as Linux names them.
_FLAGS = ("sse4_1", "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_PACKAGES = ("llmpq", "torch", "transformers", "grpcio")


def describe_machine() -> dict[str, Any]:
    """CPU, cores this process may use, instruction sets, memory, versions, load of the last minute, time."""
    cpu = _cpu_info()
    flags = set(cpu.get("flags", "").split())
    return {
        "cpu": cpu.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "instruction_sets": [flag for flag in _FLAGS if flag in flags],
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in _PACKAGES},
        "load_before": round(os.getloadavg()[0], 2),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one line, for tables and pictures."""
    sets = " ".join(machine["instruction_sets"])
    load = f"load before {machine['load_before']:.1f}"
    return f"{machine['cpu']}, {machine['cores']} core(s), {sets}; {load}; {machine['time'][:10]}"


def _cpu_info() -> dict[str, str]:
    """What Linux says of the first core."""
    first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def package_version(package: str) -> str:
    """The installed version of a package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return ""
