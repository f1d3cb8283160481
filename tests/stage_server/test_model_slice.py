"""A slice computes what transformers computes, however its work is cut up."""

import pytest
import torch
from parity_models import MODELS, SaveModel
from slices import Pipeline, random_tokens, reference

from stage_server.loader import ModelLoader


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tied_head_takes_no_memory_of_its_own(save_model: SaveModel, dtype: torch.dtype) -> None:
    """Head and embedding are one tensor whatever is computed in, and of that type where it has 16 bits."""
    loader = ModelLoader(save_model("llama-mha-tied")[0], torch.device("cpu"), dtype)
    embedding = loader.load_embedding()
    head = loader.load_head(embedding)
    assert head.is_shared
    assert head.vocabulary._stored.data_ptr() == embedding.tokens.data_ptr()
    assert embedding.tokens.dtype == (torch.float16 if dtype == torch.float32 else dtype)
