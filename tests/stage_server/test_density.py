"""What decoder layers take in memory once they are loaded, as the allocator counts it."""

import pytest
import torch
from allocator import HAS_FIGURES, WHY_SKIPPED, allocated_bytes
from transformers import LlamaConfig, LlamaForCausalLM

from llmpq.plan import LayerPrecision
from llmpq.stage_load import StageLoad
from quantizer.native.library import kernels
from stage_server.config import StageConfig
from stage_server.device import open_device
from stage_server.loader import ModelLoader
from stage_server.model_slice import ModelSlice
from stage_server.slice_loading import SliceLoad

NUM_LAYERS = 2
HIDDEN, FFN, KV = 576, 1536, 192
FP16_BYTES = 2 * NUM_LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV + 3 * HIDDEN * FFN)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama whose layers have the shapes of SmolLM2-135M."""
    directory = tmp_path_factory.mktemp("density")
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return str(directory)


@pytest.fixture(params=["native", "torch"])
def _kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With native kernels, and as if there were none."""
    if request.param == "torch":
        for module in ("linear", "weight_only"):
            monkeypatch.setattr(f"quantizer.{module}.kernels", lambda: None)
    elif kernels() is None:
        pytest.skip("the native library is not built on this host")


def loaded(model: str, scheme: str) -> ModelSlice:
    """All layers, as a stage between others has them."""
    device = open_device(StageConfig())
    loader = ModelLoader(model, device.torch_device, device.compute_dtype)
    layers = (LayerPrecision(scheme, 64),) * NUM_LAYERS
    loading = SliceLoad(loader, device, StageLoad("d", "p", model, 1, 3, 0, layers, 1, 8, 8, ""))
    for _ in loading.steps():
        pass
    return loading.weights


@pytest.mark.skipif(not HAS_FIGURES, reason=WHY_SKIPPED)
@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize(("scheme", "share"), [("w16", 1.01), ("w8", 0.52), ("w8a8", 0.52), ("w4", 0.29), ("w3", 0.23)])
def test_layers_take_what_their_precision_says(model: str, scheme: str, share: float) -> None:
    """Layers take at most their share of float16: weights, metadata and all that kernels keep, also once they ran."""
    hidden = torch.randn(24, HIDDEN)
    run(loaded(model, scheme), hidden)  # whatever any product allocates once
    before = allocated_bytes()
    weights = loaded(model, scheme)
    run(weights, hidden)
    taken = allocated_bytes() - before
    claimed = sum(layer.memory_bytes for layer in weights.layers)
    assert 0.97 * claimed < taken < 1.01 * claimed
    assert taken <= share * FP16_BYTES


def run(weights: ModelSlice, hidden: torch.Tensor) -> None:
    """Multiplies by every matrix, at one row and at all."""
    for layer in weights.layers:
        for linear in vars(layer.linears).values():
            x = hidden[:, :1].expand(-1, linear.in_features).contiguous()
            linear.forward(x)
            linear.forward(x[:1])
