"""Clusters of one host: which stage servers there are, read from a small YAML file or made up for a count.

listen: 127.0.0.1:50051      # the coordinator; a free port by default
state: ./state               # its jobs; a temporary directory by default
stages:
  - name: fast               # unique; what plans call the device
    device: cpu              # or cuda:0; cpu by default
    cpu_class: avx512        # hold a CPU to avx512, avx2 or sse4; what it has by default
    cores: [0, 1]            # all by default
    memory_budget: 150MB     # what the stage server makes of its device by default
"""

import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil
import yaml

from llmpq.address import split_address
from llmpq.errors import InvalidInputError, NotFoundError
from llmpq.units import parse_bytes

CPU_CLASSES = ("avx512", "avx2", "sse4")

#: Share of the free memory that the stages of a made-up cluster take together.
_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class StageSpec:
    """One stage server.

    Attributes:
        name: Its device_id, unique in the cluster.
        device: `cpu` or `cuda:N`.
        cpu_class: Instruction set that a CPU is held to; empty for what it has.
        cores: CPU cores it runs on; empty for all.
        memory_budget_bytes: Memory for weights, KV cache and temporaries; 0 for the stage server's own default.
    """

    name: str
    device: str = "cpu"
    cpu_class: str = ""
    cores: tuple[int, ...] = ()
    memory_budget_bytes: int = 0


@dataclass(frozen=True)
class ClusterSpec:
    """All processes of a cluster on one host.

    Attributes:
        stages: The stage servers.
        listen: host:port of the coordinator; port 0 is a free one.
        state: Directory of the coordinator's jobs; None for a temporary one.
    """

    stages: tuple[StageSpec, ...]
    listen: str = "127.0.0.1:0"
    state: Path | None = None


def read_cluster_file(path: Path) -> ClusterSpec:
    """Reads a cluster file; a relative `state` is relative to the file.

    Raises:
        NotFoundError: There is no such file.
        InvalidInputError: Not YAML, an unknown or repeated key, a missing or double name, or a value that makes no
            sense.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8-sig"), _UniqueKeyLoader)  # noqa: S506 it is a SafeLoader
    except FileNotFoundError as error:
        raise NotFoundError(f"No cluster file at '{path}'.", subject=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is not YAML: {_in_one_line(error)}.", subject=str(path)) from error
    return _Reader(path).cluster(document)


def local_cluster(num_stages: int, *, num_systems: int = 1) -> ClusterSpec:
    """A cluster of CPU stages that share this process's cores and four fifths of the free memory evenly.

    Args:
        num_stages: Stage servers.
        num_systems: How many such clusters, or others that need as much, have to do with that memory.
    """
    cores = sorted(os.sched_getaffinity(0))
    budget_bytes = int(psutil.virtual_memory().available * _MEMORY_SHARE) // num_systems // num_stages
    stages = [
        StageSpec(f"cpu-{stage}", cores=_share(cores, stage, num_stages), memory_budget_bytes=budget_bytes)
        for stage in range(num_stages)
    ]
    return ClusterSpec(tuple(stages))


def _share(cores: list[int], stage: int, num_stages: int) -> tuple[int, ...]:
    """The cores of one stage; where there are fewer cores than stages, several stages have the same."""
    if num_stages >= len(cores):
        return (cores[stage % len(cores)],)
    return tuple(cores[stage * len(cores) // num_stages : (stage + 1) * len(cores) // num_stages])


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a mapping with a repeated key, of which PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 PyYAML's signature
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' is repeated", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _in_one_line(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem}, in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())


@dataclass(frozen=True)
class _Reader:
    path: Path

    def cluster(self, document: Any) -> ClusterSpec:
        values = self._mapping(document, "the file", {field.name for field in fields(ClusterSpec)})
        entries = values.get("stages")
        if not isinstance(entries, list) or not entries:
            raise self._invalid("stages", "expected a list of at least one stage")
        stages = tuple(self.stage(entry, f"stages[{index}]") for index, entry in enumerate(entries))
        names = [stage.name for stage in stages]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise self._invalid("stages", f"two stages are named '{doubles[0]}'")
        listen = self._text(values, "listen", "listen") or ClusterSpec.listen
        split_address(listen, f"{self.path}: listen")
        state = self._text(values, "state", "state")
        return ClusterSpec(stages, listen, self.path.parent / state if state else None)

    def stage(self, entry: Any, where: str) -> StageSpec:
        values = self._mapping(entry, where, {"name", "device", "cpu_class", "cores", "memory_budget"})
        name = self._text(values, "name", f"{where}.name")
        if not name.strip():
            raise self._invalid(f"{where}.name", "every stage needs a name")
        if name.startswith("-"):
            raise self._invalid(f"{where}.name", f"'{name}' begins with '-', as flags do")
        cpu_class = self._text(values, "cpu_class", f"{where}.cpu_class")
        if cpu_class and cpu_class not in CPU_CLASSES:
            raise self._invalid(f"{where}.cpu_class", f"'{cpu_class}' is not one of {', '.join(CPU_CLASSES)}")
        cores = values.get("cores", [])
        if not isinstance(cores, list) or not all(type(core) is int and core >= 0 for core in cores):
            raise self._invalid(f"{where}.cores", "expected a list of core numbers, such as [0, 1]")
        return StageSpec(
            name,
            self._text(values, "device", f"{where}.device") or StageSpec.device,
            cpu_class,
            tuple(cores),
            self._size(values.get("memory_budget"), f"{where}.memory_budget"),
        )

    def _size(self, value: Any, where: str) -> int:
        if value is None:
            return 0
        try:
            return parse_bytes(str(value))
        except InvalidInputError as error:
            raise self._invalid(where, error.message.removesuffix(".")) from error

    def _text(self, values: Mapping[str, Any], key: str, where: str) -> str:
        value = values.get(key, "")
        if not isinstance(value, str):
            raise self._invalid(where, f"expected text, got {value!r}")
        return value

    def _mapping(self, value: Any, where: str, known: set[str]) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._invalid(where, "expected keys and values")
        unknown = sorted(str(key) for key in value.keys() - known)
        if unknown:
            raise self._invalid(where, f"unknown key '{unknown[0]}'; known are {', '.join(sorted(known))}")
        return value

    def _invalid(self, where: str, problem: str) -> InvalidInputError:
        return InvalidInputError(f"{self.path}: {where}: {problem}.", subject=where)
