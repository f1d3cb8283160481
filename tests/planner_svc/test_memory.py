"""The memory model."""

from dataclasses import replace

import pytest

from llmpq.memory import embedding_bytes, embedding_head_bytes, head_bytes, kv_bytes, layer_bytes, workspace_bytes
from llmpq.plan import LayerPrecision
from planner_svc.memory import stage_memory
from tests.planner_svc.devices import SMOLLM2, affine_law, device

OPT = replace(
    SMOLLM2,
    family="opt",
    gated_ffn=False,
    num_kv_heads=9,
    learned_positions=2050,
    tied_embeddings=False,
    num_norm_elements=4 * 576,
    num_bias_elements=4 * 576 + 1536 + 576,
    num_head_norm_elements=2 * 576,
)
#: An embedding of its own width and no norm before the head, as in OPT-350m; a norm behind the embedding, as in BLOOM.
PROJECTED = replace(OPT, projected_embedding_size=192, num_head_norm_elements=0, num_embedding_norm_elements=2 * 576)


def test_layer_counts_weights_scales_norms_and_biases() -> None:
    """A layer is its matrices with their metadata, two norms, and in OPT the biases."""
    weights = 2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576
    assert layer_bytes(SMOLLM2, LayerPrecision("w16")) == 2 * weights + 2 * 576 * 4
    scales = (576 + 192 + 192 + 576 + 1536 + 1536 + 576) * 4
    assert layer_bytes(SMOLLM2, LayerPrecision("w8")) == weights + scales + 2 * 576 * 4
    groups = weights // 64 * 3
    assert layer_bytes(SMOLLM2, LayerPrecision("w4", 64)) == weights // 2 + groups + 2 * 576 * 4
    opt_weights = 4 * 576 * 576 + 2 * 1536 * 576
    opt_vectors = 4 * 576 + (4 * 576 + 1536 + 576)
    assert layer_bytes(OPT, LayerPrecision("w16")) == 2 * opt_weights + 4 * opt_vectors


def test_tied_head_is_stored_once_on_a_single_stage() -> None:
    """One stage with tied embeddings stores the matrix once; two stages, or an untied model, twice."""
    matrix = 49152 * 576 * 2
    assert embedding_head_bytes(SMOLLM2, is_first=True, is_last=True) == matrix + 576 * 4
    first = embedding_head_bytes(SMOLLM2, is_first=True, is_last=False)
    last = embedding_head_bytes(SMOLLM2, is_first=False, is_last=True)
    assert first + last == 2 * matrix + 576 * 4
    assert embedding_head_bytes(OPT, is_first=True, is_last=True) == embedding_bytes(OPT) + head_bytes(OPT)
    assert embedding_bytes(OPT) == matrix + 2050 * 576 * 2
    assert embedding_head_bytes(OPT, is_first=False, is_last=False) == 0


def test_projections_and_norms_outside_the_layers_are_counted() -> None:
    """A projected embedding is narrow, and comes with a matrix at each end; norms there are counted, none is not."""
    vocabulary, projection, positions = 49152 * 192 * 2, 192 * 576 * 2, 2050 * 576 * 2
    assert embedding_bytes(PROJECTED) == vocabulary + projection + positions + 2 * 576 * 4
    assert head_bytes(PROJECTED) == vocabulary + projection
    tied = replace(PROJECTED, tied_embeddings=True)
    once = embedding_bytes(tied) + projection
    assert embedding_head_bytes(tied, is_first=True, is_last=True) == once


def test_kv_cache_counts_grouped_query_attention() -> None:
    """The cache holds keys and values of the key/value heads only, for all slots at full length."""
    assert kv_bytes(SMOLLM2, num_layers=7, num_slots=24, max_sequence_tokens=192, activation_bytes=4) == (
        7 * 24 * 192 * 2 * 3 * 64 * 4
    )


def test_an_int8_cache_has_a_scale_for_each_token_and_head() -> None:
    """A byte an element, and float32 scales of keys and of values, whatever the device computes in."""
    sizes = {"num_layers": 7, "num_slots": 24, "max_sequence_tokens": 192}
    for activation_bytes in (2, 4):
        taken = kv_bytes(SMOLLM2, **sizes, activation_bytes=activation_bytes, is_int8=True)
        assert taken == 7 * 24 * 192 * 2 * 3 * (64 + 4)


@pytest.mark.parametrize(
    "larger",
    [{"max_prefill_tokens": 4096}, {"decode_sequences": 640}, {"max_sequence_tokens": 8192}, {"activation_bytes": 4}],
)
def test_workspace_grows_with_every_size(larger: dict[str, int]) -> None:
    """Temporaries are those of the larger phase, on every stage, and grow with each of the sizes."""
    sizes = {"max_prefill_tokens": 256, "decode_sequences": 8, "max_sequence_tokens": 256, "activation_bytes": 2}
    for ends in ({"is_first": first, "is_last": last} for first in (True, False) for last in (True, False)):
        small = workspace_bytes(SMOLLM2, **ends, **sizes)  # type: ignore[arg-type]
        large = workspace_bytes(SMOLLM2, **ends, **(sizes | larger))  # type: ignore[arg-type]
        assert 0 < small < large


def test_last_stage_has_logits() -> None:
    """The last stage also holds float32 logits of each sequence, less the frame that it need not send on."""
    sizes = {"max_prefill_tokens": 64, "decode_sequences": 8, "max_sequence_tokens": 64, "activation_bytes": 2}
    middle = workspace_bytes(SMOLLM2, is_first=False, is_last=False, **sizes)
    last = workspace_bytes(SMOLLM2, is_first=False, is_last=True, **sizes)
    assert last - middle == 8 * 49152 * 4 - 64 * 576 * 2


def test_stage_memory_adds_up() -> None:
    """A stage's figures are the formulas' and its budget the device's."""
    description = device("a", affine_law(), memory_bytes=10**8).description
    layers = (LayerPrecision("w4", 64), LayerPrecision("w8"))
    memory = stage_memory(
        SMOLLM2,
        description,
        layers,
        is_first=True,
        is_last=False,
        num_slots=4,
        max_sequence_tokens=128,
        max_prefill_tokens=256,
        has_int8_kv_cache=False,
    )
    assert memory.layer_bytes == sum(layer_bytes(SMOLLM2, layer) for layer in layers)
    assert memory.kv_bytes == 2 * 4 * 128 * 2 * 192 * 4
    assert memory.embedding_head_bytes == embedding_bytes(SMOLLM2)
    assert memory.budget_bytes == 10**8
