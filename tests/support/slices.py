"""Slices of a model run one after another, and what transformers computes in their place."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from parity_models import VOCABULARY
from transformers import PreTrainedModel

from llmpq.plan import LayerPrecision
from stage_server.kv_cache import KvCache
from stage_server.layer_run import LayerRun
from stage_server.layout import BatchLayout
from stage_server.loader import ModelLoader
from stage_server.model_slice import ModelSlice
from stage_server.positions import PositionEncoding

CPU = torch.device("cpu")
EXACT = LayerPrecision("w16")


class Pipeline:
    """Slices of one model, run one after another."""

    def __init__(
        self,
        model: str,
        cuts: Sequence[int],
        num_slots: int = 6,
        max_tokens: int = 64,
        *,
        has_int8_kv_cache: bool = False,
    ) -> None:
        loader = ModelLoader(model, CPU, torch.float32)
        self.spec = loader.spec
        bounds = [0, *cuts, self.spec.num_layers]
        self.slices = []
        for first, end in pairwise(bounds):
            embedding = loader.load_embedding() if first == 0 else None
            layers = tuple(loader.build_layer(loader.source.layer(index), EXACT) for index in range(first, end))
            head = loader.load_head(embedding) if end == self.spec.num_layers else None
            encoding = PositionEncoding(self.spec, CPU, torch.float32)
            self.slices.append(ModelSlice(layers, embedding, head, encoding))
        caches = [
            KvCache(
                num_layers=len(part.layers),
                num_slots=num_slots,
                num_kv_heads=self.spec.num_kv_heads,
                max_tokens=max_tokens,
                head_dim=self.spec.head_dim,
                dtype=torch.float32,
                device=CPU,
                is_int8=has_int8_kv_cache,
            )
            for part in self.slices
        ]
        self.runs = [LayerRun(part.layers, cache.layers) for part, cache in zip(self.slices, caches, strict=True)]

    def logits(
        self, tokens: Sequence[Sequence[int]], slots: Sequence[int], starts: Sequence[int]
    ) -> list[torch.Tensor]:
        """Logits of every new token, per sequence: each (count, vocabulary)."""
        counts = tuple(len(sequence) for sequence in tokens)
        layout = BatchLayout(tuple(slots), tuple(starts), counts, CPU)
        states = torch.tensor([token for sequence in tokens for token in sequence], dtype=torch.int32)
        with torch.no_grad():
            for part, run in zip(self.slices, self.runs, strict=True):
                states = part.hidden_states(states, layout, run)
            head = self.slices[-1].head
            assert head is not None
            return list(head.logits(states).split(counts))


def reference(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """The logits of transformers, (tokens, vocabulary)."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def random_tokens(seed: int, count: int) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()
