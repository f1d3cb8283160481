"""Models by name."""

import pytest

from llmpq.errors import InvalidInputError
from llmpq.memory import head_bytes
from llmpq.model import ModelShape
from planner_svc.catalog.catalog import read_catalog
from planner_svc.catalog.models import ModelSheet

MODELS = read_catalog().models


def num_parameters(shape: ModelShape) -> int:
    """Elements of all weights that a shape speaks of."""
    layer = sum(rows * columns for rows, columns in shape.linear_shapes.values())
    layer += shape.num_norm_elements + shape.num_bias_elements
    vocabulary = shape.vocab_size * shape.embedding_size
    ends = vocabulary * (1 if shape.tied_embeddings else 2) + shape.learned_positions * shape.hidden_size
    ends += 2 * shape.projected_embedding_size * shape.hidden_size
    return shape.num_layers * layer + ends + shape.num_embedding_norm_elements + shape.num_head_norm_elements


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_as_many_parameters_as_are_published(name: str) -> None:
    """What the dimensions come to, norms and biases included, is the published number to the unit."""
    assert num_parameters(MODELS[name].shape) == MODELS[name].parameters


def test_the_models_of_the_paper_are_there() -> None:
    """The dimensions that LLM-PQ's plans depend on."""
    shape = read_catalog().shape("bloom-176b")
    assert (shape.num_layers, shape.hidden_size, shape.num_heads, shape.intermediate_size) == (70, 14336, 112, 57344)
    assert {"opt-13b", "opt-30b", "opt-66b", "llama-3-70b", "qwen2.5-32b"} <= set(MODELS)
    assert head_bytes(read_catalog().shape("opt-30b")) > 0


def test_an_unknown_family_is_refused_by_name() -> None:
    """A user's entry of a family that cannot be served says so, and which can be."""
    with pytest.raises(InvalidInputError, match=r"'mamba' is not known; known are: .*opt"):
        _ = ModelSheet({"model_type": "mamba"}, 1).shape
