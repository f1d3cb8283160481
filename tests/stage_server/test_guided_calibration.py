"""What layers are calibrated by, against what transformers and its autograd compute with the same weights."""

from collections.abc import Callable, Iterator

import pytest
import torch
from parity_models import MODELS, SaveModel
from slices import random_tokens
from transformers import PreTrainedModel

from llmpq.device import DeviceDescription
from llmpq.schemes import SCHEMES
from quantizer.input_statistics import InputStatistics
from stage_server.calibration import CalibratedLayer
from stage_server.device import ComputeDevice
from stage_server.gradients import drawn_columns
from stage_server.guided_calibration import guided_layers
from stage_server.loader import ModelLoader

SAMPLES = tuple(tuple(random_tokens(seed, length)) for seed, length in enumerate((24, 9, 17)))
#: Operators of a Llama layer in transformers, by the linears that they are stacked into here.
OPERATORS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_out": ("self_attn.o_proj",),
    "ffn_in": ("mlp.gate_proj", "mlp.up_proj"),
    "ffn_out": ("mlp.down_proj",),
}


def calibrated(directory: str, *wanted: int) -> list[CalibratedLayer[InputStatistics]]:
    """The layers wanted, calibrated on the samples without gradients being on, as on a stage's compute thread."""
    description = DeviceDescription("cpu", "CPU", "avx2", 1, 10**9, 10**9, tuple(SCHEMES), 4)
    device = ComputeDevice(torch.device("cpu"), torch.float32, description)
    loader = ModelLoader(directory, device.torch_device, device.compute_dtype)
    with torch.no_grad():
        return list(guided_layers(loader, device, SAMPLES, wanted))


def test_tokens_count_by_the_squared_gradient_of_the_loss(save_model: SaveModel) -> None:
    """Each operator has the moments of what it reads, tokens weighted by their mean squared gradient by its outputs."""
    directory, model = save_model("llama-gqa-untied")
    expected = moments_by_autograd(model)
    layers = calibrated(directory, 0, 1, 2)
    assert [layer.index for layer in layers] == [2, 1, 0]
    for layer in layers:
        for role, names in OPERATORS.items():
            for got, name in zip(layer.inputs[role].second_moments, names, strict=True):
                wanted = expected[layer.index, name]
                assert torch.allclose(got, wanted, rtol=1e-2, atol=1e-3 * wanted.abs().max().item()), (
                    layer.index,
                    name,
                )


def moments_by_autograd(model: PreTrainedModel) -> dict[tuple[int, str], torch.Tensor]:
    """The weighted moments by layer and operator, with drawn tokens as the stage draws them."""
    generator = torch.Generator().manual_seed(0)
    sums: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}
    for sample in SAMPLES:
        seen: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}
        hooks = [
            layer.get_submodule(name).register_forward_hook(_keeper(seen, (index, name)))
            for index, layer in enumerate(model.model.layers)
            for names in OPERATORS.values()
            for name in names
        ]
        logits = model(torch.tensor([sample])).logits[0]
        drawn = drawn_columns(logits.detach().softmax(dim=-1), generator)
        gradients = torch.autograd.grad(-logits.log_softmax(-1).gather(1, drawn).sum(), [y for _, y in seen.values()])
        for (key, (x, _)), gradient in zip(seen.items(), gradients, strict=True):
            rows, weights = x[0].detach(), gradient[0].square().mean(dim=1)
            moments, total = sums.get(key, (torch.zeros(()), torch.zeros(())))
            sums[key] = (moments + (rows * weights[:, None]).T @ rows, total + weights.sum())
        for hook in hooks:
            hook.remove()
    return {key: moments / total for key, (moments, total) in sums.items()}


def _keeper(
    seen: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]], key: tuple[int, str]
) -> Callable[..., None]:
    def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen[key] = (inputs[0], output)

    return keep


def test_a_layer_is_calibrated_alike_whichever_are_wanted(save_model: SaveModel) -> None:
    """So a stage that holds some layers rounds them as a stage that holds all."""
    directory, _ = save_model("opt")
    (alone,), together = calibrated(directory, 1), calibrated(directory, 0, 1, 2)
    assert alone.index == together[1].index == 1
    for role, inputs in alone.inputs.items():
        assert torch.equal(inputs.second_moments, together[1].inputs[role].second_moments)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_can_be_calibrated(save_model: SaveModel, name: str) -> None:
    """Each operator of each family reads something that matters."""
    directory, _ = save_model(name)
    assert all(moments > 0 for moments in _mean_squares(calibrated(directory, 0, 1, 2)))


def _mean_squares(layers: list[CalibratedLayer[InputStatistics]]) -> Iterator[float]:
    for layer in layers:
        for inputs in layer.inputs.values():
            yield from (moments.trace().item() for moments in inputs.second_moments)
