"""Quantized layers of a random model with a cache of their own, and what is run through them."""

from collections.abc import Sequence

import torch

from llmpq.plan import LayerPrecision
from stage_server.decoder_layer import DecoderLayer
from stage_server.families import DecoderSpec
from stage_server.kv_cache import KvCache
from stage_server.layout import BatchLayout
from stage_server.loader import ModelLoader
from stage_server.positions import PositionEncoding, Positions

CPU = torch.device("cpu")
#: Of the layers in turn: integers of every width.
PRECISIONS = (LayerPrecision("w8a8"), LayerPrecision("w4", 32), LayerPrecision("w3", 64))
SLOTS, TOKENS = 4, 40
#: Cached tokens by slot: a prompt that is prefilled, then steps of ever fewer sequences, out of the order of the slots.
PROMPTS = (7, 30, 1, 12)
STEPS = ((2, 0, 3, 1), (3, 0, 1), (0, 1, 3), (1,))


class StageModel:
    """Layers and cache.

    Args:
        directory: Of the model.
        is_int8: Whether the cache is.
        by_torch: Use no native kernels between the products.
        precisions: Of the layers in turn.
    """

    def __init__(
        self,
        directory: str,
        *,
        is_int8: bool = False,
        by_torch: bool = False,
        precisions: Sequence[LayerPrecision] = PRECISIONS,
    ) -> None:
        loader = ModelLoader(directory, CPU, torch.float32)
        self.spec: DecoderSpec = loader.spec
        self.layers: list[DecoderLayer] = [
            loader.build_layer(loader.source.layer(index), precision) for index, precision in enumerate(precisions)
        ]
        if by_torch:
            for layer in self.layers:
                layer._native_glue = None
        self.encoding = PositionEncoding(self.spec, CPU, torch.float32)
        self.cache = KvCache(
            num_layers=len(self.layers),
            num_slots=SLOTS,
            num_kv_heads=self.spec.num_kv_heads,
            max_tokens=TOKENS,
            head_dim=self.spec.head_dim,
            dtype=torch.float32,
            device=CPU,
            is_int8=is_int8,
        )

    def at(self, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> Positions:
        """Positions of a micro-batch."""
        return self.encoding.at(BatchLayout(tuple(slots), tuple(starts), tuple(counts), CPU))

    def one_by_one(self, hidden: torch.Tensor, positions: Positions) -> torch.Tensor:
        """What the layers make of states, each called by itself."""
        for layer, cache in zip(self.layers, self.cache.layers, strict=True):
            hidden = layer.forward(hidden, positions, cache)
        return hidden
