"""Ratings of layers against what transformers computes with the same weights."""

import pytest
import torch
from parity_models import MODELS, SaveModel
from slices import random_tokens
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from llmpq.device import DeviceDescription
from llmpq.errors import InvalidInputError
from llmpq.plan import LayerPrecision, Rounding
from llmpq.rating import RatingProgress, RatingRequest
from llmpq.schemes import SCHEMES
from llmpq.stage_load import TokenSequence
from quantizer.methods import round_weight
from stage_server.device import ComputeDevice
from stage_server.gradients import drawn_columns
from stage_server.loader import ModelLoader
from stage_server.sensitivity import rate_layers

SAMPLES = tuple(tuple(random_tokens(seed, length)) for seed, length in enumerate((24, 9, 17)))
#: Operators of a Llama layer in transformers.
OPERATORS = tuple(f"self_attn.{name}_proj" for name in "qkvo") + tuple(f"mlp.{n}_proj" for n in ("gate", "up", "down"))


def rate(
    directory: str, *, budget: int = 10**9, samples: tuple[tuple[int, ...], ...] = SAMPLES, **asked: object
) -> list[RatingProgress]:
    """Everything that rating a model yields."""
    torch.set_grad_enabled(False)  # as on the stage's compute thread
    description = DeviceDescription("cpu", "CPU", "avx2", 1, budget, budget, tuple(SCHEMES), 4)
    device = ComputeDevice(torch.device("cpu"), torch.float32, description)
    loader = ModelLoader(directory, device.torch_device, device.compute_dtype)
    sequences = tuple(TokenSequence(sample) for sample in samples)
    settings = {"schemes": ("w8", "w4", "w3"), "group_size": 32} | asked
    try:
        return list(rate_layers(loader, device, RatingRequest(directory, samples=sequences, **settings)))
    finally:
        torch.set_grad_enabled(True)


def omegas(progress: list[RatingProgress]) -> dict[tuple[int, str], float]:
    """The ratings by layer and scheme."""
    return {(entry.layer, entry.scheme): entry.omega for step in progress for entry in step.sensitivities}


def rounded(weight: torch.Tensor, scheme: str) -> torch.Tensor:
    """The weight that is served for another one."""
    return round_weight(weight, LayerPrecision(scheme, 32)).dequantized()


def test_hessian_is_the_squared_derivative_of_the_loss_along_the_error(save_model: SaveModel) -> None:
    """Omega is E[(g . dW)^2] / 2 a token, summed over operators, with the gradients of transformers' own autograd."""
    directory, model = save_model("llama-gqa-untied")
    generator = torch.Generator().manual_seed(0)
    squares: dict[tuple[int, str], float] = {}
    for sample in SAMPLES:
        logits = model(torch.tensor([sample])).logits[0]
        drawn = drawn_columns(logits.detach().softmax(dim=-1), generator)
        model.zero_grad()
        logits.log_softmax(dim=-1).gather(1, drawn).sum().backward()
        for index, layer in enumerate(model.model.layers):
            for scheme in ("w8", "w4", "w3"):
                for name in OPERATORS:
                    weight = layer.get_submodule(name).weight
                    along = (weight.grad * (rounded(weight.detach(), scheme) - weight.detach())).sum().item()
                    squares[index, scheme] = squares.get((index, scheme), 0.0) + along**2
    expected = {key: square / 2 / sum(map(len, SAMPLES)) for key, square in squares.items()}
    assert_alike(omegas(rate(directory, indicator="hessian")), expected)


def test_loss_is_the_divergence_with_one_layer_quantized(save_model: SaveModel) -> None:
    """Omega is the mean KL divergence of transformers' predictions with that layer's weights rounded."""
    directory, model = save_model("llama-gqa-untied")
    exact = predictions(model)
    expected = {}
    for index, layer in enumerate(model.model.layers):
        for scheme in ("w8", "w4", "w3"):
            kept = {name: layer.get_submodule(name).weight.detach().clone() for name in OPERATORS}
            for name, weight in kept.items():
                layer.get_submodule(name).weight.data.copy_(rounded(weight, scheme))
            pairs = zip(predictions(model), exact, strict=True)
            divergence = sum(kl_div(q, p, reduction="sum", log_target=True).item() for q, p in pairs)
            expected[index, scheme] = divergence / sum(map(len, SAMPLES))
            for name, weight in kept.items():
                layer.get_submodule(name).weight.data.copy_(weight)
    assert_alike(omegas(rate(directory, indicator="loss")), expected)


def predictions(model: PreTrainedModel) -> list[torch.Tensor]:
    """Log-probabilities of every next token of the samples."""
    with torch.no_grad():
        return [model(torch.tensor([sample])).logits[0].log_softmax(dim=-1) for sample in SAMPLES]


def assert_alike(got: dict[tuple[int, str], float], expected: dict[tuple[int, str], float]) -> None:
    """The same but for rounding; at w4 and w3 but for what their kernels lose by rounding activations."""
    assert got.keys() == expected.keys()
    for (layer, scheme), omega in expected.items():
        assert got[layer, scheme] == pytest.approx(omega, rel=1e-2 if scheme == "w8" else 0.1)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_can_be_rated(save_model: SaveModel, name: str) -> None:
    """Each indicator rates each layer of each family; nothing costs w16 anything, and fewer bits cost more."""
    directory, model = save_model(name)
    num_layers = model.config.num_hidden_layers
    for indicator in ("variance", "hessian", "loss"):
        got = omegas(rate(directory, indicator=indicator, schemes=("w3", "w16", "w8")))
        assert len(got) == 3 * num_layers
        for layer in range(num_layers):
            assert got[layer, "w16"] == 0 < got[layer, "w8"] < got[layer, "w3"]


@pytest.mark.parametrize("indicator", ["variance", "hessian", "loss"])
def test_progress_counts_up_and_each_rating_comes_once(save_model: SaveModel, indicator: str) -> None:
    """Steps are those that were announced; the last one ends what was asked for."""
    directory, _ = save_model("opt")
    progress = rate(directory, indicator=indicator)
    assert [step.steps_done for step in progress] == list(range(1, progress[0].steps_total + 1))
    assert sum(len(step.sensitivities) for step in progress) == len(omegas(progress)) == 9
    assert progress[-1].sensitivities


def test_losses_do_not_depend_on_memory(save_model: SaveModel) -> None:
    """Where only the variants of one layer fit at a time, there is a pass for each; losses stay the same."""
    directory, _ = save_model("llama-gqa-untied")
    whole, in_passes = (rate(directory, indicator="loss", budget=budget) for budget in (10**9, 1))
    assert (len(whole), len(in_passes)) == (3, 3 + 2 + 1)
    assert omegas(in_passes) == omegas(whole)


@pytest.mark.parametrize(("indicator", "num_samples"), [("loss", 10), ("hessian", 20)])
def test_the_first_samples_are_rated_on(save_model: SaveModel, indicator: str, num_samples: int) -> None:
    """Samples beyond the first 1,024 or 2,048 tokens change no rating, unless weights are rounded by them."""
    directory, _ = save_model("llama-gqa-untied")
    samples = tuple(tuple(random_tokens(seed, 100)) for seed in range(num_samples + 2))
    rated = {}
    for method in ("nearest", "gptq"):
        few, many = (
            rate(directory, indicator=indicator, rounding=Rounding(method), samples=samples[:n])
            for n in (num_samples, num_samples + 2)
        )
        rated[method] = omegas(few) == omegas(many)
    assert rated == {"nearest": True, "gptq": False}


@pytest.mark.parametrize("indicator", ["hessian", "loss"])
def test_ratings_are_of_the_rounding_that_is_served(save_model: SaveModel, indicator: str) -> None:
    """Calibrated by the very samples, gptq leaves less to rate than rounding to the nearest."""
    directory, _ = save_model("llama-gqa-untied")
    samples = tuple(tuple(random_tokens(seed, 100)) for seed in range(3))
    nearest, gptq = (
        sum(omegas(rate(directory, indicator=indicator, samples=samples, rounding=Rounding(method))).values())
        for method in ("nearest", "gptq")
    )
    assert gptq < 0.9 * nearest


def test_what_cannot_be_rated_is_refused(save_model: SaveModel) -> None:
    """An indicator that stages do not measure, and samples that cannot be run."""
    directory, _ = save_model("llama-gqa-untied")
    with pytest.raises(InvalidInputError, match="'random': there are hessian, variance, loss"):
        rate(directory, indicator="random")
    for indicator in ("variance", "hessian", "loss"):
        with pytest.raises(InvalidInputError, match="at least one sample"):
            rate(directory, indicator=indicator, samples=())
