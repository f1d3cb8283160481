"""Model files, read one tensor at a time under their Hugging Face names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

import torch

from llmpq.errors import InvalidInputError, NotFoundError
from llmpq.messages import from_fields
from llmpq.model import ModelFiles
from stage_server.gguf_checkpoint import GgufCheckpoint
from stage_server.safetensors_reader import SafetensorsReader

#: The weights of a model directory: one file, or several and the index that says which tensor is in which.
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class Checkpoint(Protocol):
    """Tensors by name."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""

    def tensor(self, name: str) -> torch.Tensor:
        """Reads one tensor onto the CPU, in the type it is stored in (float32 where it is stored quantized).

        Raises:
            NotFoundError: There is none of this name.
        """

    def rows(self, name: str, first: int, end: int) -> torch.Tensor:
        """Reads rows `first` to `end` of a matrix; raises as `tensor`."""


def open_checkpoint(model: str) -> Checkpoint:
    """Opens a model's files; raises NotFoundError if they are not there."""
    files = ModelFiles.locate(model)
    if files.gguf:
        return GgufCheckpoint(files.directory / files.gguf)
    return SafetensorsCheckpoint(files.directory)


class SafetensorsCheckpoint:
    """A directory of safetensors files, with an index if there are several; opens those whose tensors are asked for."""

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

    def rows(self, name: str, first: int, end: int) -> torch.Tensor:
        """See Checkpoint."""
        return self._reader_of(name).rows(name, first, end)

    def _reader_of(self, tensor: str) -> SafetensorsReader:
        if tensor not in self._file_of or tensor not in self._reader(self._file_of[tensor]).entries:
            raise NotFoundError(
                f"Tensor '{tensor}' is missing in '{self._directory}'.", reason="TENSOR_NOT_FOUND", subject=tensor
            )
        return self._reader(self._file_of[tensor])

    def _reader(self, file_name: str) -> SafetensorsReader:
        if file_name not in self._readers:
            path = self._directory / file_name
            if not path.is_file():
                raise NotFoundError(f"File '{path}' is missing.", reason="WEIGHTS_NOT_FOUND", subject=str(path))
            self._readers[file_name] = SafetensorsReader(str(path), partial(_open_binary, path))
        return self._readers[file_name]

    def _index(self) -> Mapping[str, str]:
        """The file of each tensor."""
        index = self._directory / INDEX_FILE
        if index.is_file():
            return read_weight_map(index)
        if not (self._directory / SINGLE_FILE).is_file():
            raise NotFoundError(
                f"No {SINGLE_FILE} and no {INDEX_FILE} in '{self._directory}'.",
                reason="WEIGHTS_NOT_FOUND",
                subject=str(self._directory),
            )
        return dict.fromkeys(self._reader(SINGLE_FILE).entries, SINGLE_FILE)


def _open_binary(path: Path) -> BinaryIO:
    return path.open("rb", buffering=0)  # what is read goes straight into tensors


def read_weight_map(index: Path) -> Mapping[str, str]:
    """The file of each tensor, as `model.safetensors.index.json` says; raises InvalidInputError if it is damaged."""
    try:
        return from_fields(_ShardIndex, json.loads(index.read_text())).weight_map
    except (ValueError, InvalidInputError) as error:
        raise InvalidInputError(
            f"File '{index}' is damaged: {error}.", reason="DAMAGED_FILE", subject=str(index)
        ) from error


@dataclass(frozen=True)
class _ShardIndex:
    """`model.safetensors.index.json`."""

    weight_map: dict[str, str]
