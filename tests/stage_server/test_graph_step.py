"""Decode steps as graphs: on a GPU replayed, here run again on the same tensors, they are the layers one by one."""

from collections.abc import Callable

import pytest
import torch
from parity_models import MODELS, SaveModel
from stage_model import PROMPTS, SLOTS, STEPS, TOKENS, StageModel

from llmpq.plan import LayerPrecision
from stage_server import graph_step
from stage_server.graph_step import GraphStep, RepeatedLayout, StepShape
from stage_server.layout import BatchLayout

CPU = torch.device("cpu")
EXACT = (LayerPrecision("w16"),) * 3


def record_by_running(function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
    """A graph without a GPU: the result always lies in the memory where it lay when the function was recorded."""
    result = function().clone()
    return result, lambda: result.copy_(function())


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_replayed_steps_equal_layers_one_by_one(
    save_model: SaveModel, monkeypatch: pytest.MonkeyPatch, name: str, *, is_int8: bool
) -> None:
    """One graph serves steps of any slots and positions of its shape, in any order; only rounding may differ."""
    monkeypatch.setattr(graph_step, "KEYS", 16)
    directory = save_model(name)[0]
    repeated, alone = (StageModel(directory, is_int8=is_int8, by_torch=True, precisions=EXACT) for _ in range(2))
    tolerance = 2e-2 if is_int8 else 1e-4  # what differs by rounding may get another code
    graphs: dict[StepShape, GraphStep] = {}
    with torch.no_grad():
        prompts = torch.randn(sum(PROMPTS), alone.spec.hidden_size)
        for model in (repeated, alone):
            model.one_by_one(prompts, model.at(range(SLOTS), (0,) * SLOTS, PROMPTS))
        lengths = list(PROMPTS)
        for slots in (*STEPS, *STEPS, (0, 1, 2, 3), (0, 1, 2, 3)):
            states = torch.randn(len(slots), alone.spec.hidden_size)
            layout = (slots, [lengths[slot] for slot in slots], (1,) * len(slots))
            positions = repeated.at(*layout)
            shape = StepShape.of(positions.layout, repeated.cache.max_tokens)
            if shape not in graphs:
                layers = tuple(zip(repeated.layers, repeated.cache.layers, strict=True))
                graphs[shape] = GraphStep(layers, shape, states, positions, record_by_running)
            expected = alone.one_by_one(states, alone.at(*layout))
            torch.testing.assert_close(graphs[shape].run(states, positions), expected, rtol=tolerance, atol=tolerance)
            for slot in slots:
                lengths[slot] += 1
    assert {shape.num_keys for shape in graphs} == {32, TOKENS}


def test_a_shape_has_room_for_the_longest_and_no_more_than_a_slot() -> None:
    """Keys are rounded up to 256 or the end of the slot; slots that are a range are known by the first."""
    one, later = BatchLayout((1, 2), (5, 300), (1, 1), CPU), BatchLayout((1, 2), (6, 400), (1, 1), CPU)
    assert StepShape.of(one, 1000) == StepShape.of(later, 1000) == StepShape(2, 512, 1)
    assert StepShape.of(later, 450) == StepShape(2, 450, 1)
    assert StepShape.of(BatchLayout((2, 1), (5, 300), (1, 1), CPU), 1000) == StepShape(2, 512, None)


def test_a_repeated_layout_is_that_of_the_last_step() -> None:
    """Slots and positions stay where they are and change their values."""
    shape = StepShape(2, 512, None)
    layout = RepeatedLayout(shape, CPU)
    slots, positions = layout.slot_index, layout.positions
    layout.fill(BatchLayout((3, 1), (7, 500), (1, 1), CPU))
    assert (slots.tolist(), positions.tolist()) == ([3, 1], [7, 500])
    assert layout.is_one_token_each
    assert (min(layout.ends), max(layout.ends)) == (1, 512)
