"""Layers run together: a decode step in one native call is nothing else than its layers one by one."""

from collections.abc import Sequence

import pytest
import torch
from parity_models import MODELS, SaveModel

from llmpq.plan import LayerPrecision
from quantizer.native.library import kernels
from stage_server.decoder_layer import DecoderLayer
from stage_server.families import DecoderSpec
from stage_server.kv_cache import KvCache
from stage_server.layer_run import LayerRun
from stage_server.layout import BatchLayout
from stage_server.loader import ModelLoader
from stage_server.positions import PositionEncoding, Positions

pytestmark = pytest.mark.skipif(kernels() is None, reason="the native library is not built on this host")

CPU = torch.device("cpu")
#: Of the layers in turn: integers of every width.
PRECISIONS = (LayerPrecision("w8a8"), LayerPrecision("w4", 32), LayerPrecision("w3", 64))
SLOTS, TOKENS = 4, 40
#: Cached tokens by slot: a prompt that is prefilled, then steps of ever fewer sequences, out of the order of the slots.
PROMPTS = (7, 30, 1, 12)
STEPS = ((2, 0, 3, 1), (3, 0, 1), (0, 1, 3), (1,))
#: Families whose feed-forward activation or order of norms torch has a part in.
BY_TORCH = ("bloom", "opt")


class Model:
    """Quantized layers of a random model, with a cache of their own."""

    def __init__(self, directory: str, *, is_int8: bool = False) -> None:
        loader = ModelLoader(directory, CPU, torch.float32)
        self.spec: DecoderSpec = loader.spec
        self.layers: list[DecoderLayer] = [
            loader.build_layer(loader.source.layer(index), precision) for index, precision in enumerate(PRECISIONS)
        ]
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


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_steps_equal_layers_one_by_one(save_model: SaveModel, name: str, *, is_int8: bool) -> None:
    """Prompts and decode steps come out the same, bit by bit, as of layers that are called one after another."""
    directory = save_model(name)[0]
    together, alone = Model(directory, is_int8=is_int8), Model(directory, is_int8=is_int8)
    run = LayerRun(together.layers, together.cache.layers)
    with torch.no_grad():
        prompts = torch.randn(sum(PROMPTS), together.spec.hidden_size)
        layout = (range(SLOTS), (0,) * SLOTS, PROMPTS)
        assert torch.equal(run.forward(prompts, together.at(*layout)), alone.one_by_one(prompts, alone.at(*layout)))
        lengths = list(PROMPTS)
        for slots in STEPS:
            states = torch.randn(len(slots), together.spec.hidden_size)
            layout = (slots, [lengths[slot] for slot in slots], (1,) * len(slots))
            positions = together.at(*layout)
            result = run.forward(states, positions)
            assert torch.equal(result, alone.one_by_one(states, alone.at(*layout)))
            assert (run.step(states, positions) is None) == any(part in name for part in BY_TORCH)
            for slot in slots:
                lengths[slot] += 1


def test_results_outlive_later_steps(save_model: SaveModel) -> None:
    """What a step has given does not change when the memory that it was made in serves the next one."""
    model = Model(save_model("llama-gqa-untied")[0])
    run = LayerRun(model.layers, model.cache.layers)
    with torch.no_grad():
        first = run.forward(torch.randn(2, model.spec.hidden_size), model.at((0, 1), (0, 0), (1, 1)))
        kept = first.clone()
        run.forward(torch.randn(2, model.spec.hidden_size), model.at((0, 1), (1, 1), (1, 1)))
    assert torch.equal(first, kept)


def test_gradients_flow_through_layers_called_one_by_one(save_model: SaveModel) -> None:
    """States that want gradients are not given to kernels that know nothing of them."""
    model = Model(save_model("llama-gqa-untied")[0])
    run = LayerRun(model.layers, model.cache.layers)
    states = torch.randn(1, model.spec.hidden_size, requires_grad=True)
    assert run.step(states, model.at((0,), (0,), (1,))) is None
