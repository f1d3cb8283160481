"""Model files, read one tensor at a time under their Hugging Face names, from wherever they are."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from llmpq.model import ModelFiles
from stage_server.gguf_checkpoint import GgufCheckpoint
from stage_server.hub_checkpoint import HubCheckpoint
from stage_server.safetensors_checkpoint import SafetensorsCheckpoint


class Checkpoint(Protocol):
    """Tensors by name."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""

    def tensor(self, name: str) -> torch.Tensor:
        """Reads one tensor onto the CPU, in the type it is stored in (float32 where it is stored quantized).

        Raises:
            NotFoundError: There is none of this name.
        """

    def num_rows(self, name: str) -> int:
        """Length of the first axis of a tensor; raises as `tensor`."""

    def rows(self, name: str, first: int, end: int) -> torch.Tensor:
        """Reads rows `first` to `end` of a matrix; raises as `tensor`."""

    def expect(self, beginnings: Sequence[str]) -> None:
        """Says which tensors will be read, by how their names begin, so that they can be fetched together."""


def open_checkpoint(model: str, report: Callable[[str], None] = lambda _: None) -> Checkpoint:
    """Opens a model's files.

    Args:
        model: A directory, a .gguf file or a name on the Hub.
        report: Told in a sentence what is being fetched from the Hub, now and whenever something is read.

    Raises:
        NotFoundError: They are not there.
        UnavailableError: They are on the Hub, which cannot be reached.
        InvalidInputError: They are damaged.
    """
    files = ModelFiles.locate(model)
    if files.gguf:
        return GgufCheckpoint(files.directory / files.gguf)
    if files.hub:
        return HubCheckpoint(files.hub, files.directory, report)
    return SafetensorsCheckpoint(files.directory)
