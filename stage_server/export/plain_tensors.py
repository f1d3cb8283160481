"""What an exported checkpoint has beside the weights of the layers' linears."""

from collections.abc import Iterable, Iterator

import torch

from quantizer.methods import to_sixteen_bits
from stage_server.loader import ModelLoader
from stage_server.source import ModelSource

_MATRIX_DIMENSIONS = 2


def outside_layers(loader: ModelLoader) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of the embedding, which comes first, of the final norm, and of the head if it has its own."""
    source = loader.source
    names = source.spec.names
    prefix = names.prefixes[0]
    yield f"{prefix}{names.token_embedding}.weight", loader.load_table(source.embedding_rows)
    if not source.is_tied:
        yield f"{names.head}.weight", loader.load_table(source.head_rows)
    others = (
        names.position_embedding,
        names.embedding_norm,
        names.embedding_projection,
        names.head_projection,
        names.final_norm,
    )
    yield from _copied(source, (prefix + module for module in others if module is not None))


def in_layer(source: ModelSource, index: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a layer's norms and biases."""
    names = source.spec.names
    prefix = names.prefixes[0] + names.layer.format(index)
    yield from _copied(source, (prefix + module for module in names.norms.values()))
    linears = (prefix + module for modules in names.linears.values() for module in modules)
    yield from _copied(source, linears, suffixes=("bias",))


def _copied(
    source: ModelSource, modules: Iterable[str], suffixes: tuple[str, ...] = ("weight", "bias")
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of these modules that there are: vectors as stored, matrices in 16 bits, as the mesh holds them."""
    for name in (f"{module}.{suffix}" for module in modules for suffix in suffixes):
        tensor = source.plain(name)
        if tensor is not None:
            yield name, to_sixteen_bits(tensor) if tensor.ndim == _MATRIX_DIMENSIONS else tensor
