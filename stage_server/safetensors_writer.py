"""Writes safetensors files, with the errors of any other file."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

#: How the library ends the text of an error that the operating system told it.
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def write_safetensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes contiguous tensors on the CPU to a file.

    Raises:
        OSError: It cannot be written, or not all of it; the library has an exception of its own for that.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error
