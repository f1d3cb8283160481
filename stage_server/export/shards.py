"""Safetensors files of limited size, written one after another as tensors come."""

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import torch

from stage_server.safetensors_writer import write_safetensors

#: Bytes of a file, and so of the tensors that wait in memory to be written; a single larger tensor has its own file.
MAX_SHARD_BYTES = 2**30
#: Others may serve the model; the library would keep its files to their owner.
_READABLE = 0o644


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes tensors to a directory: to `model.safetensors`, or to several files and an index once one is full.

    Args:
        directory: Where to; must exist.
        max_shard_bytes: Of one file.
    """

    def __init__(self, directory: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self._directory = directory
        self._max_shard_bytes = max_shard_bytes
        self._waiting: dict[str, torch.Tensor] = {}
        self._waiting_bytes = 0
        self._shards: list[list[str]] = []  # names of the tensors of each file
        self.total_bytes = 0

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Writes what waits, and the index; nothing if the block failed."""
        if kind is None:
            self._flush()
            self._finish()

    def add_all(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """As `add`, of several by their names."""
        for name, tensor in tensors:
            self.add(name, tensor)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Takes a tensor on any device; it must not change any more."""
        if self._waiting and self._waiting_bytes + tensor.nbytes > self._max_shard_bytes:
            self._flush()
        self._waiting[name] = tensor.cpu().contiguous()
        self._waiting_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def _flush(self) -> None:
        self._shards.append(list(self._waiting))
        path = self._part(len(self._shards))
        write_safetensors(self._waiting, path, {"format": "pt"})
        path.chmod(_READABLE)
        self._waiting, self._waiting_bytes = {}, 0

    def _finish(self) -> None:
        if len(self._shards) == 1:
            self._part(1).rename(self._directory / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            file_name = f"model-{number:05}-of-{len(self._shards):05}.safetensors"
            self._part(number).rename(self._directory / file_name)
            weight_map |= dict.fromkeys(names, file_name)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        (self._directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))

    def _part(self, number: int) -> Path:
        """A file's name until it is known how many there will be."""
        return self._directory / f"part-{number:05}.safetensors"
