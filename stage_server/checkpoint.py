"""Model files, read one tensor at a time under their Hugging Face names."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map
from gguf.quants import dequantize
from safetensors import SafetensorError, safe_open

from llmpq.errors import InvalidInputError, NotFoundError
from llmpq.messages import from_fields
from llmpq.model import ModelFiles


class Checkpoint(Protocol):
    """Tensors by name."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""

    def tensor(self, name: str) -> torch.Tensor:
        """Reads one tensor onto the CPU, in the type it is stored in (float32 where it is stored quantized).

        Raises:
            NotFoundError: There is none of this name.
        """


def open_checkpoint(model: str) -> Checkpoint:
    """Opens a model's files; raises NotFoundError if they are not there."""
    files = ModelFiles.locate(model)
    if files.gguf:
        return GgufCheckpoint(files.directory / files.gguf)
    return SafetensorsCheckpoint(files.directory)


class SafetensorsCheckpoint:
    """A directory of safetensors files, with an index if there are several; reads only the tensors asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file_of = _index(directory)

    def has(self, name: str) -> bool:
        """See Checkpoint."""
        return name in self._file_of

    def tensor(self, name: str) -> torch.Tensor:
        """See Checkpoint."""
        if name not in self._file_of:
            raise _missing(name, self._directory)
        with _opened(self._directory / self._file_of[name]) as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor


class GgufCheckpoint:
    """A GGUF file of a llama-like model: names mapped, quantized blocks expanded, rotary layout undone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            reader = GGUFReader(path)
        except Exception as error:  # a damaged file makes the parser raise anything
            raise _damaged(path, error) from error
        architecture = str(_field(reader, "general.architecture"))
        if architecture != "llama":
            raise InvalidInputError(
                f"GGUF architecture '{architecture}' in {path.name} is not supported; known: llama.",
                reason="UNKNOWN_FAMILY",
                subject="model",
            )
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._names = get_tensor_name_map(MODEL_ARCH.LLAMA, int(_field(reader, "llama.block_count")))
        num_heads = int(_field(reader, "llama.attention.head_count"))
        num_kv_heads = int(_field(reader, "llama.attention.head_count_kv", num_heads))
        self._heads_of = {"q_proj": num_heads, "k_proj": num_kv_heads}

    def has(self, name: str) -> bool:
        """See Checkpoint."""
        return self._gguf_name(name) in self._tensors

    def tensor(self, name: str) -> torch.Tensor:
        """See Checkpoint."""
        if not self.has(name):
            raise _missing(name, self._path)
        stored = self._tensors[self._gguf_name(name)]
        values = torch.from_numpy(np.array(dequantize(stored.data, stored.tensor_type)))
        for projection, num_heads in self._heads_of.items():
            if f".{projection}." in name:
                return _interleaved_to_halves(values, num_heads)
        return values

    def _gguf_name(self, name: str) -> str:
        module, _, suffix = name.rpartition(".")
        return f"{self._names.get_name(module)}.{suffix}"


def _interleaved_to_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of a rotary projection from GGUF's order (pairs adjacent) to Hugging Face's (first and second halves)."""
    pairs = weight.view(num_heads, -1, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _index(directory: Path) -> dict[str, str]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            return from_fields(_ShardIndex, json.loads(index.read_text())).weight_map
        except (ValueError, InvalidInputError) as error:
            raise _damaged(index, error) from error
    path = directory / "model.safetensors"
    if not path.is_file():
        raise NotFoundError(
            f"No model.safetensors and no model.safetensors.index.json in '{directory}'.",
            reason="WEIGHTS_NOT_FOUND",
            subject=str(directory),
        )
    with _opened(path) as file:
        return dict.fromkeys(file.keys(), path.name)


@dataclass(frozen=True)
class _ShardIndex:
    """`model.safetensors.index.json`: the file of each tensor."""

    weight_map: dict[str, str]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open for the length of the block."""
    if not path.is_file():
        raise NotFoundError(f"File '{path}' is missing.", reason="WEIGHTS_NOT_FOUND", subject=str(path))
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InvalidInputError:
    return InvalidInputError(f"File '{path}' is damaged: {error}.", reason="DAMAGED_FILE", subject=str(path))


def _field(reader: GGUFReader, key: str, default: int | None = None) -> int | str:
    field = reader.get_field(key)
    if field is not None:
        contents: int | str = field.contents()
        return contents
    if default is None:
        raise InvalidInputError(f"GGUF file lacks the field '{key}'.", subject="model")
    return default


def _missing(name: str, where: Path) -> NotFoundError:
    return NotFoundError(f"Tensor '{name}' is missing in '{where}'.", reason="TENSOR_NOT_FOUND", subject=name)
