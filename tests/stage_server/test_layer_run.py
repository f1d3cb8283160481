"""Layers run together: a decode step in one native call is nothing else than its layers one by one."""

import pytest
import torch
from parity_models import MODELS, SaveModel
from stage_model import PROMPTS, SLOTS, STEPS, StageModel

from quantizer.native.library import kernels
from stage_server.layer_run import LayerRun

pytestmark = pytest.mark.skipif(kernels() is None, reason="the native library is not built on this host")

#: Families whose feed-forward activation or order of norms torch has a part in.
BY_TORCH = ("bloom", "opt")


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_steps_equal_layers_one_by_one(save_model: SaveModel, name: str, *, is_int8: bool) -> None:
    """Prompts and decode steps come out the same, bit by bit, as of layers that are called one after another."""
    directory = save_model(name)[0]
    together, alone = StageModel(directory, is_int8=is_int8), StageModel(directory, is_int8=is_int8)
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
    model = StageModel(save_model("llama-gqa-untied")[0])
    run = LayerRun(model.layers, model.cache.layers)
    with torch.no_grad():
        first = run.forward(torch.randn(2, model.spec.hidden_size), model.at((0, 1), (0, 0), (1, 1)))
        kept = first.clone()
        run.forward(torch.randn(2, model.spec.hidden_size), model.at((0, 1), (1, 1), (1, 1)))
    assert torch.equal(first, kept)


def test_gradients_flow_through_layers_called_one_by_one(save_model: SaveModel) -> None:
    """States that want gradients are not given to kernels that know nothing of them."""
    model = StageModel(save_model("llama-gqa-untied")[0])
    run = LayerRun(model.layers, model.cache.layers)
    states = torch.randn(1, model.spec.hidden_size, requires_grad=True)
    assert run.step(states, model.at((0,), (0,), (1,))) is None
