"""A mesh at w16 generates what transformers generates from the same weights, however the work is divided."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from mesh import Mesh, completion
from reference import Reference
from tiny_models import FAMILIES, save_random, save_wide_llama

from llmpq import BatchState, Plan, PlanOptions
from llmpq.rpc.channel import MAX_MESSAGE_BYTES

NUM_TOKENS = 64

TEXTS = (
    "Once upon a time",
    "The",
    "Lily and Tom went to the park with a big red ball. They played all day long, and then",
    (
        "The capital of France is Paris, a city on the river Seine with more than two million people. The capital of "
        "Germany is Berlin, which lies on the river Spree. The capital of Italy is Rome. Now say the capital of Spain"
    ),
)
#: Prompts of many lengths for models whose tokens are no words.
RANDOM_PROMPTS = tuple(
    tuple((7 * length + 11 * at) % 317 + 3 for at in range(length)) for length in (3, 1, 41, 17, 6, 90, 2)
)

#: Prefill micro-batch, decode micro-batch and lanes; fewer and more slots than requests, full and partly filled.
CHOICES = ((1, 1, 1), (2, 3, 2), (3, 1, 4))
#: One of them for each number of stages, where a model is not run with all.
CHOICE_OF = {1: (4, 2, 1), 2: (1, 3, 2), 3: (2, 1, 3)}


@pytest.fixture(scope="module", params=(1, 2, 3), ids=lambda stages: f"{stages}-stages")
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh of one, two or three stages that serves several batches."""
    with Mesh(tmp_path_factory.mktemp("mesh"), num_stages=request.param) as mesh:
        yield mesh


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("family", ["random_opt", "random_llama", "random_llama_untied"])
def test_random_models(mesh: Mesh, family: str, choice: tuple[int, int, int], request: pytest.FixtureRequest) -> None:
    """Random weights, where each token differs, come out the same for every split, micro-batch size and lane count."""
    _check(mesh, request.getfixturevalue(family), RANDOM_PROMPTS, choice)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_stories260k(mesh: Mesh, stories260k: str, choice: tuple[int, int, int]) -> None:
    """A trained Llama stored in float32 tells transformers' stories."""
    _check(mesh, stories260k, TEXTS, choice)


@pytest.mark.parametrize("model", ["opt_bytes", "bloom_bytes"])
def test_models_over_bytes(mesh: Mesh, model: str, request: pytest.FixtureRequest) -> None:
    """A trained OPT and a trained BLOOM continue texts byte by byte as in transformers."""
    _check(mesh, request.getfixturevalue(model), TEXTS, CHOICE_OF[mesh.num_stages])


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(two_stages: Mesh, tmp_path: Path, family: str) -> None:
    """Each further family comes out the same over two stages, past the end of its windows where it has them."""
    _check(two_stages, str(save_random(tmp_path, family)), RANDOM_PROMPTS, CHOICE_OF[2])


def test_a_micro_batch_of_several_messages(two_stages: Mesh, tmp_path: Path) -> None:
    """Hidden states of one micro-batch that are larger than a message come out the same."""
    prompts = tuple(tuple((7 * length + 11 * at) % 317 + 3 for at in range(length)) for length in (90, 120, 180, 64))

    plan = _check(two_stages, str(save_wide_llama(tmp_path)), prompts, (4, 2, 2))

    num_rows = sum(map(len, prompts))
    assert num_rows <= plan.max_prefill_tokens
    assert num_rows * 8192 * 4 > 2 * MAX_MESSAGE_BYTES


def test_smollm2(mesh: Mesh, smollm2: str) -> None:
    """A real model out of a GGUF file, at other micro-batch sizes for each number of stages."""
    _check(mesh, smollm2, TEXTS, CHOICE_OF[mesh.num_stages])


def _check(mesh: Mesh, model: str, prompts: tuple[str | tuple[int, ...], ...], choice: tuple[int, int, int]) -> Plan:
    prefill_micro_batch, decode_micro_batch, num_lanes = choice
    options = PlanOptions(
        allowed_schemes=("w16",),
        prefill_micro_batch=prefill_micro_batch,
        decode_micro_batch=decode_micro_batch,
        num_lanes=num_lanes,
        use_all_devices=True,
    )
    lines = [
        completion(str(index), prompt if isinstance(prompt, str) else list(prompt), NUM_TOKENS)
        for index, prompt in enumerate(prompts)
    ]

    finished = mesh.run(lines, model=model, plan_options=options, ignore_stop=True)

    assert finished.batch.state is BatchState.COMPLETED, finished.batch.status_message
    plan = finished.batch.plan
    assert plan is not None
    assert (plan.prefill_micro_batch, plan.decode_micro_batch, plan.num_lanes) == choice
    assert len(plan.stages) == mesh.num_stages
    assert finished.texts == {str(index): text for index, text in enumerate(_expected(model, prompts))}
    return plan


@cache
def _expected(model: str, prompts: tuple[str | tuple[int, ...], ...]) -> tuple[str, ...]:
    reference = Reference.load(model)
    return tuple(
        reference.complete(prompt, NUM_TOKENS)
        if isinstance(prompt, str)
        else reference.complete_ids(prompt, NUM_TOKENS)
        for prompt in prompts
    )
