"""Reads single tensors, or rows of them, out of a safetensors file that may lie on a disk or across a network.

The safetensors library maps a file into memory, so what was touched of it counts as memory of this process, and it
needs the whole file on this host. Here a tensor is read into memory of its own, and nothing else is read.

The format: the length of the header in 8 bytes (little-endian), the header in JSON, then the bytes of the tensors,
whose offsets count from the end of the header (https://huggingface.co/docs/safetensors).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from llmpq.errors import InvalidInputError

#: Opens a file for reading and seeking.
OpenFile = Callable[[], BinaryIO]

#: The format's own limit on its header.
MAX_HEADER_BYTES = 100_000_000
#: Bytes asked for at a time: across a network each piece is a request, whose answer is held in memory.
_PIECE_BYTES = 2**25
_LENGTH_BYTES = 8
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies.

    Attributes:
        dtype: Name of its type in the format.
        shape: Its dimensions.
        start: Its first byte in the file.
        end: One past its last.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.start


class SafetensorsReader:
    """The tensors of one file.

    Args:
        name: Of the file, for errors.
        open_file: Opens it; called for each read.

    Raises:
        InvalidInputError: It is not a whole safetensors file.
    """

    def __init__(self, name: str, open_file: OpenFile) -> None:
        self.name = name
        self._open = open_file
        self.metadata, self.entries = self._read_header()

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in memory of its own; there is one of this name.

        Raises:
            InvalidInputError: The file is damaged, or the tensor is of a type that torch does not have.
        """
        entry = self.entries[name]
        return self._read(name, entry, entry.start, entry.shape)

    def num_rows(self, name: str) -> int:
        """Length of a tensor's first axis; 0 if it has none."""
        return (*self.entries[name].shape, 0)[0]

    def rows(self, name: str, first: int, end: int) -> torch.Tensor:
        """Rows `first` to `end`, of which there are some, along the first axis of a tensor; raises as `tensor`."""
        entry = self.entries[name]
        row_bytes = entry.num_bytes // entry.shape[0]
        return self._read(name, entry, entry.start + first * row_bytes, (end - first, *entry.shape[1:]))

    def extract(self, name: str, path: Path) -> None:
        """Writes a tensor to a safetensors file of its own, a piece at a time; raises as `tensor`."""
        entry = self.entries[name]
        fields = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [0, entry.num_bytes]}
        header = json.dumps({name: fields}).encode()
        with path.open("wb") as target, self._open() as file:
            target.write(len(header).to_bytes(_LENGTH_BYTES, "little") + header)
            file.seek(entry.start)
            for first in range(0, entry.num_bytes, _PIECE_BYTES):
                piece = bytearray(min(_PIECE_BYTES, entry.num_bytes - first))
                self._fill(file, memoryview(piece))
                target.write(piece)

    def _read(self, name: str, entry: TensorEntry, start: int, shape: tuple[int, ...]) -> torch.Tensor:
        if entry.dtype not in _DTYPES:
            raise InvalidInputError(
                f"Tensor '{name}' in '{self.name}' is of type {entry.dtype}, which cannot be read.",
                reason="BAD_TENSOR",
                subject=name,
            )
        dtype = _DTYPES[entry.dtype]
        content = torch.empty(prod(shape) * dtype.itemsize, dtype=torch.uint8)
        with self._open() as file:
            file.seek(start)
            self._fill(file, content.numpy().data)
        return content.view(dtype).view(shape)

    def _read_header(self) -> tuple[Mapping[str, str], dict[str, TensorEntry]]:
        with self._open() as file:
            num_bytes = file.seek(0, 2)
            file.seek(0)
            prefix = bytearray(min(_LENGTH_BYTES, num_bytes))
            self._fill(file, memoryview(prefix))
            header_bytes = int.from_bytes(prefix, "little")
            if header_bytes > min(num_bytes - _LENGTH_BYTES, MAX_HEADER_BYTES):
                raise self._damaged("it ends before its header does")
            header = bytearray(header_bytes)
            self._fill(file, memoryview(header))
        try:
            fields = json.loads(header)
            metadata = fields.pop("__metadata__", {})
            data = _LENGTH_BYTES + header_bytes
            entries = {name: _entry(entry, data) for name, entry in fields.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._damaged("its header is not one") from error
        for name, entry in entries.items():
            if not data <= entry.start <= entry.end <= num_bytes:
                raise self._damaged(f"tensor '{name}' lies beyond its end")
            dtype = _DTYPES.get(entry.dtype)
            if dtype is not None and prod(entry.shape) * dtype.itemsize != entry.num_bytes:
                raise self._damaged(f"tensor '{name}' has {entry.num_bytes} bytes, which are not its shape's")
        return metadata, entries

    def _fill(self, file: BinaryIO, buffer: memoryview) -> None:
        """Reads as many bytes as the buffer has."""
        filled = 0
        while filled < len(buffer):
            piece = buffer[filled : filled + _PIECE_BYTES]
            num_read = file.readinto(piece)  # type: ignore[attr-defined]  # every binary file has it
            if not num_read:
                raise self._damaged("it is cut short")
            filled += num_read

    def _damaged(self, why: str) -> InvalidInputError:
        return InvalidInputError(
            f"File '{self.name}' is damaged: {why}. Fetch it again.", reason="DAMAGED_FILE", subject=self.name
        )


def _entry(fields: Mapping[str, Any], data: int) -> TensorEntry:
    """An entry of the header; `data` is where the header ends."""
    start, end = fields["data_offsets"]
    return TensorEntry(str(fields["dtype"]), tuple(map(int, fields["shape"])), data + int(start), data + int(end))
