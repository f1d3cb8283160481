"""A slice computes what transformers computes, however its work is cut up."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from parity_models import MODELS, VOCABULARY, SaveModel
from transformers import PreTrainedModel

from llmpq.plan import LayerPrecision
from stage_server.kv_cache import KvCache
from stage_server.layout import BatchLayout
from stage_server.loader import ModelLoader
from stage_server.model_slice import ModelSlice
from stage_server.positions import PositionEncoding

CPU = torch.device("cpu")


class Pipeline:
    """Slices of one model, run one after another."""

    def __init__(self, model: str, cuts: Sequence[int], num_slots: int = 6, max_tokens: int = 64) -> None:
        loader = ModelLoader(model, CPU, torch.float32)
        self.spec = loader.spec
        bounds = [0, *cuts, self.spec.num_layers]
        self.slices = []
        for first, end in pairwise(bounds):
            embedding = loader.load_embedding() if first == 0 else None
            layers = tuple(loader.load_layers(first, (LayerPrecision("w16"),) * (end - first)))
            head = loader.load_head(embedding) if end == self.spec.num_layers else None
            encoding = PositionEncoding(self.spec, CPU, torch.float32)
            self.slices.append(ModelSlice(layers, embedding, head, encoding))
        self.caches = [
            KvCache(
                num_layers=len(part.layers),
                num_slots=num_slots,
                num_kv_heads=self.spec.num_kv_heads,
                max_tokens=max_tokens,
                head_dim=self.spec.head_dim,
                dtype=torch.float32,
                device=CPU,
            )
            for part in self.slices
        ]

    def logits(
        self, tokens: Sequence[Sequence[int]], slots: Sequence[int], starts: Sequence[int]
    ) -> list[torch.Tensor]:
        """Logits of every new token, per sequence: each (count, vocabulary)."""
        counts = tuple(len(sequence) for sequence in tokens)
        layout = BatchLayout(tuple(slots), tuple(starts), counts, CPU)
        states = torch.tensor([token for sequence in tokens for token in sequence], dtype=torch.int32)
        with torch.no_grad():
            for part, cache in zip(self.slices, self.caches, strict=True):
                states = part.hidden_states(states, layout, cache)
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


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cuts", [(), (1,), (1, 2)])
def test_prefill_then_decode_equals_transformers(save_model: SaveModel, name: str, cuts: tuple[int, ...]) -> None:
    """Ragged prompts prefilled together and then decoded token by token give transformers' logits within 1e-4."""
    directory, model = save_model(name)
    pipeline = Pipeline(directory, cuts)
    sequences = [random_tokens(seed, length) for seed, length in enumerate((5, 17, 1))]
    expected = [reference(model, sequence + random_tokens(9, 4)) for sequence in sequences]

    prefilled = pipeline.logits(sequences, slots=(0, 1, 2), starts=(0, 0, 0))
    for got, want, sequence in zip(prefilled, expected, sequences, strict=True):
        torch.testing.assert_close(got, want[: len(sequence)], atol=1e-4, rtol=1e-4)

    for step, token in enumerate(random_tokens(9, 4)):
        starts = [len(sequence) + step for sequence in sequences]
        decoded = pipeline.logits([[token]] * 3, slots=(0, 1, 2), starts=starts)
        for got, want, start in zip(decoded, expected, starts, strict=True):
            torch.testing.assert_close(got[0], want[start], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_prompt_in_chunks_equals_prompt_at_once(save_model: SaveModel, name: str) -> None:
    """A prompt prefilled in chunks, beside another sequence's decode, gives the logits of the whole prompt."""
    directory, model = save_model(name)
    pipeline = Pipeline(directory, (2,))
    prompt, other = random_tokens(1, 20), random_tokens(2, 6)
    pipeline.logits([other[:5]], slots=(4,), starts=(0,))

    first, _ = pipeline.logits([prompt[:7], other[5:]], slots=(1, 4), starts=(0, 5))
    (second,) = pipeline.logits([prompt[7:]], slots=(1,), starts=(7,))

    torch.testing.assert_close(torch.cat((first, second)), reference(model, prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("slots", [(3, 0, 5), (2, 3, 4)])
def test_result_does_not_depend_on_the_slot(save_model: SaveModel, slots: tuple[int, ...]) -> None:
    """Scattered and adjacent slots, used before by longer sequences, give the same logits."""
    directory, model = save_model("llama-gqa-untied")
    pipeline = Pipeline(directory, ())
    pipeline.logits([random_tokens(seed, 30) for seed in range(6)], slots=range(6), starts=(0,) * 6)
    sequences = [random_tokens(seed, length) for seed, length in ((11, 4), (12, 9), (13, 2))]

    pipeline.logits([sequence[:-1] for sequence in sequences], slots=slots, starts=(0, 0, 0))
    decoded = pipeline.logits(
        [sequence[-1:] for sequence in sequences],
        slots=slots,
        starts=[len(sequence) - 1 for sequence in sequences],
    )

    for got, sequence in zip(decoded, sequences, strict=True):
        torch.testing.assert_close(got[0], reference(model, sequence)[-1], atol=1e-4, rtol=1e-4)
