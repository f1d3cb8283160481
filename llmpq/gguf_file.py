"""GGUF files: what they say of themselves, read in a fraction of a second, and their tensors."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType
from gguf.quants import dequantize

from llmpq.errors import InvalidInputError

_LENGTH = struct.Struct("<Q")
#: The header of an array: the type of its items and how many there are.
_ARRAY = struct.Struct("<IQ")
#: Longer arrays are lists of the vocabulary.
_MAX_NUMBERS = 4096


class GgufFile:
    """The fields and tensors of a GGUF file.

    Args:
        path: The file.

    Raises:
        InvalidInputError: It is damaged, or one of several parts of a model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = _VocabularySkippingReader(path)
        except Exception as error:  # a damaged file makes the parser raise anything
            raise self._damaged(str(error)) from error
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._refuse_parts()
        self.architecture = str(self._field("general.architecture"))

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a field of this architecture, named without it; `default` if it is missing."""
        key = f"{self.architecture}.{key}"
        return self._fields[key].contents() if key in self._fields else default

    def setting(self, key: str) -> Any:
        """As `get`, for a field that every such file has; raises InvalidInputError, naming it, if it is missing."""
        return self._field(f"{self.architecture}.{key}")

    def token_id(self, role: str) -> int | None:
        """The id of a special token ("bos", "eos", "padding"); None if it has none."""
        field = self._fields.get(f"tokenizer.ggml.{role}_token_id")
        return field.contents() if field is not None else None

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._tensors

    def num_rows(self, name: str) -> int:
        """Length of the first axis of a tensor that there is."""
        return len(self._tensors[name].data)

    def rows(self, name: str, first: int, end: int) -> np.ndarray[Any, Any]:
        """Rows `first` to `end` of a tensor that there is, as float32 if they are stored quantized.

        They are read, not taken from the mapping of the file, whose pages would count as memory of this process for as
        long as the file is open.

        Raises:
            InvalidInputError: The file is cut short.
        """
        stored = self._tensors[name]
        row_shape = stored.data.shape[1:]
        offset = stored.data_offset + first * stored.data.strides[0]
        count = (end - first) * int(np.prod(row_shape))
        read = np.fromfile(self.path, stored.data.dtype, count, offset=offset)
        if read.size != count:
            raise self._damaged("it is cut short")
        return np.ascontiguousarray(dequantize(read.reshape(end - first, *row_shape), stored.tensor_type))

    def values(self, name: str) -> np.ndarray[Any, Any]:
        """All of a tensor that there is; see `rows`."""
        return self.rows(name, 0, self.num_rows(name))

    def _refuse_parts(self) -> None:
        field = self._fields.get("split.count")
        num_parts = int(field.contents()) if field is not None else 1
        if num_parts > 1:
            raise InvalidInputError(
                f"File '{self.path}' is one of {num_parts} parts of a model, which are not read as they are. Join them "
                "with `llama-gguf-split --merge FIRST_PART WHOLE.gguf`.",
                reason="SPLIT_FILE",
                subject=str(self.path),
            )

    def _field(self, key: str) -> Any:
        if key not in self._fields:
            raise InvalidInputError(f"GGUF file '{self.path}' lacks the field '{key}'.", subject="model")
        return self._fields[key].contents()

    def _damaged(self, why: str) -> InvalidInputError:
        path = str(self.path)
        return InvalidInputError(f"File '{path}' is damaged: {why}.", reason="DAMAGED_FILE", subject=path)


class _VocabularySkippingReader(GGUFReader):
    """GGUFReader makes several objects of every token and merge, which takes seconds; nobody asks for them here."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        item_type, num_items = _ARRAY.unpack_from(self.data.data, orig_offs)
        if item_type == GGUFValueType.STRING:
            size = self._size_of_strings(orig_offs + _ARRAY.size, num_items)
        elif item_type in self.gguf_scalar_to_np and num_items > _MAX_NUMBERS:
            size = num_items * np.dtype(self.gguf_scalar_to_np[item_type]).itemsize
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        return _ARRAY.size + size, [], [], [GGUFValueType.ARRAY, GGUFValueType(item_type)]

    def _size_of_strings(self, start: int, num_strings: int) -> int:
        buffer, offset = self.data.data, start
        for _ in range(num_strings):
            offset += _LENGTH.size + _LENGTH.unpack_from(buffer, offset)[0]
        return offset - start
