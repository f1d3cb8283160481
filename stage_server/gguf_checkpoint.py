"""GGUF files, read one tensor at a time under their Hugging Face names and in Hugging Face's layout."""

from collections.abc import Sequence
from pathlib import Path

import torch
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

from llmpq.errors import NotFoundError
from llmpq.gguf_file import GgufFile

_ARCHITECTURES = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}
#: Architectures whose query and key projections have rotated pairs of channels side by side.
_PAIRED = frozenset({"llama"})
#: Architectures whose norms are stored as they multiply, 1 more than Hugging Face stores.
_WHOLE_NORMS = frozenset({"gemma", "gemma2", "gemma3"})


class GgufCheckpoint:
    """A GGUF file: names mapped, quantized blocks expanded, what llama.cpp's converter did undone; a Checkpoint."""

    def __init__(self, path: Path) -> None:
        self._file = GgufFile(path)
        architecture = _ARCHITECTURES[self._file.architecture]
        self._names = get_tensor_name_map(architecture, int(self._file.setting("block_count")))
        num_heads = int(self._file.setting("attention.head_count"))
        num_kv_heads = int(self._file.get("attention.head_count_kv", num_heads))
        self._heads_of = {"q_proj": num_heads, "k_proj": num_kv_heads, "query_key_value": num_heads}

    def has(self, name: str) -> bool:
        """See Checkpoint."""
        return self._file.has(self._gguf_name(name))

    def tensor(self, name: str) -> torch.Tensor:
        """See Checkpoint."""
        self._require(name)
        values = torch.from_numpy(self._file.values(self._gguf_name(name)))
        module = name.rpartition(".")[0].rpartition(".")[2]
        if module.endswith("norm") and self._file.architecture in _WHOLE_NORMS:
            return values - 1
        if module == "query_key_value":
            return _projections_to_heads(values, self._heads_of[module])
        if module in self._heads_of and self._file.architecture in _PAIRED:
            return _pairs_to_halves(values, self._heads_of[module])
        return values

    def num_rows(self, name: str) -> int:
        """See Checkpoint."""
        self._require(name)
        return self._file.num_rows(self._gguf_name(name))

    def rows(self, name: str, first: int, end: int) -> torch.Tensor:
        """See Checkpoint; not for projections whose rows are in another order here."""
        self._require(name)
        return torch.from_numpy(self._file.rows(self._gguf_name(name), first, end))

    def expect(self, beginnings: Sequence[str]) -> None:
        """See Checkpoint; whatever it will be, it is here already."""

    def _require(self, name: str) -> None:
        if not self.has(name):
            where = self._file.path
            raise NotFoundError(f"Tensor '{name}' is missing in '{where}'.", reason="TENSOR_NOT_FOUND", subject=name)

    def _gguf_name(self, name: str) -> str:
        module, _, suffix = name.rpartition(".")
        # gguf knows some names only without what transformers puts before all of them.
        known = self._names.get_name(module) or self._names.get_name(module.partition(".")[2])
        return f"{known}.{suffix}"


def _pairs_to_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of a rotary projection from GGUF's order (pairs adjacent) to Hugging Face's (first and second halves)."""
    pairs = weight.view(num_heads, -1, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _projections_to_heads(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of BLOOM's fused projection from (projection, head, channel) to (head, projection, channel)."""
    projections = weight.view(3, num_heads, -1, *weight.shape[1:])
    return projections.transpose(0, 1).reshape(weight.shape)
