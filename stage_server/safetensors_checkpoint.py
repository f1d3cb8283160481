"""Directories of safetensors files, as transformers writes them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch

from llmpq.errors import InvalidInputError, NotFoundError
from llmpq.messages import from_fields
from stage_server.safetensors_reader import SafetensorsReader

#: The weights of a model: one file, or several and the index that says which tensor is in which.
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class SafetensorsCheckpoint:
    """A directory of safetensors files; opens those whose tensors are asked for; a Checkpoint."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._readers: dict[str, SafetensorsReader] = {}
        self._file_of = self._index()

    def has(self, name: str) -> bool:
        """See Checkpoint."""
        return name in self._file_of

    def tensor(self, name: str) -> torch.Tensor:
        """See Checkpoint."""
        return self._reader_of(name).tensor(name)

    def num_rows(self, name: str) -> int:
        """See Checkpoint."""
        return self._reader_of(name).num_rows(name)

    def rows(self, name: str, first: int, end: int) -> torch.Tensor:
        """See Checkpoint."""
        return self._reader_of(name).rows(name, first, end)

    def expect(self, beginnings: Sequence[str]) -> None:
        """See Checkpoint: all of it is here already."""

    def _reader_of(self, name: str) -> SafetensorsReader:
        if name not in self._file_of:
            raise missing_tensor(name, str(self._directory))
        reader = self._reader(self._file_of[name])
        if name not in reader.entries:
            raise missing_tensor(name, reader.name)
        return reader

    def _reader(self, file_name: str) -> SafetensorsReader:
        if file_name not in self._readers:
            self._readers[file_name] = local_reader(self._directory / file_name)
        return self._readers[file_name]

    def _index(self) -> Mapping[str, str]:
        """The file of each tensor."""
        if (self._directory / INDEX_FILE).is_file():
            return read_weight_map(self._directory / INDEX_FILE)
        if not (self._directory / SINGLE_FILE).is_file():
            raise NotFoundError(
                f"No {SINGLE_FILE} and no {INDEX_FILE} in '{self._directory}'.",
                reason="WEIGHTS_NOT_FOUND",
                subject=str(self._directory),
            )
        return dict.fromkeys(self._reader(SINGLE_FILE).entries, SINGLE_FILE)


def local_reader(path: Path) -> SafetensorsReader:
    """The reader of a file on this host.

    Raises:
        NotFoundError: It is not there.
        InvalidInputError: It is damaged.
    """
    if not path.is_file():
        raise NotFoundError(f"File '{path}' is missing.", reason="WEIGHTS_NOT_FOUND", subject=str(path))
    return SafetensorsReader(str(path), partial(_open_unbuffered, path))


def read_weight_map(index: Path) -> Mapping[str, str]:
    """The file of each tensor, as `model.safetensors.index.json` says; raises InvalidInputError if it is damaged."""
    try:
        return from_fields(_ShardIndex, json.loads(index.read_text())).weight_map
    except (ValueError, InvalidInputError) as error:
        message = f"File '{index}' is damaged: {error}."
        raise InvalidInputError(message, reason="DAMAGED_FILE", subject=str(index)) from error


def missing_tensor(name: str, where: str) -> NotFoundError:
    """The error for a tensor that a file or model lacks."""
    return NotFoundError(f"Tensor '{name}' is missing in '{where}'.", reason="TENSOR_NOT_FOUND", subject=name)


def _open_unbuffered(path: Path) -> BinaryIO:
    return path.open("rb", buffering=0)  # what is read goes straight into tensors


@dataclass(frozen=True)
class _ShardIndex:
    """`model.safetensors.index.json`."""

    weight_map: dict[str, str]
