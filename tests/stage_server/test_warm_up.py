"""Micro-batches before the first one."""

import pytest
import torch
from parity_models import SaveModel

from llmpq.plan import LayerPrecision
from stage_server.config import StageConfig
from stage_server.device import open_device
from stage_server.kv_cache import KvCache
from stage_server.layer_run import LayerRun
from stage_server.layout import BatchLayout
from stage_server.loader import ModelLoader
from stage_server.model_slice import ModelSlice
from stage_server.positions import PositionEncoding
from stage_server.warm_up import warm_up

MAX_TOKENS = 8
TOKENS = torch.tensor([5, 17, 101, 3], dtype=torch.int32)


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("family", ["llama-bias", "opt", "bloom"])
def test_both_phases_are_computed_and_leave_nothing(save_model: SaveModel, family: str, *, is_int8: bool) -> None:
    """The first slot has been written to its end; once it is cleared, a sequence gets the same states in it."""
    directory, _ = save_model(family)
    device = open_device(StageConfig(memory_budget=10**9))
    loader = ModelLoader(directory, device.torch_device, device.compute_dtype)
    layers = tuple(
        loader.build_layer(loader.source.layer(index), LayerPrecision("w16")) for index in range(loader.spec.num_layers)
    )
    encoding = PositionEncoding(loader.spec, device.torch_device, device.compute_dtype)
    embedding = loader.load_embedding()
    weights = ModelSlice(layers, embedding, loader.load_head(embedding, is_screened=False), encoding)
    layout = BatchLayout((0,), (0,), (len(TOKENS),), device.torch_device)

    cold, warm = (_empty_cache(loader, is_int8=is_int8) for _ in range(2))
    run = LayerRun(layers, warm.layers)
    with torch.no_grad():
        expected = weights.hidden_states(TOKENS, layout, LayerRun(layers, cold.layers))
        warm_up(weights, run, loader.spec.hidden_size, MAX_TOKENS, device)
        assert _keys(warm).abs().sum(dim=(0, 1, 3)).all()
        warm.clear(0)
        assert not _keys(warm).any()
        assert torch.equal(weights.hidden_states(TOKENS, layout, run), expected)


def _keys(cache: KvCache) -> torch.Tensor:
    """Of the first slot in the last layer."""
    keys, _ = cache.layers[-1].read(slice(0, 1), slice(0, MAX_TOKENS))
    return keys


def _empty_cache(loader: ModelLoader, *, is_int8: bool) -> KvCache:
    return KvCache(
        num_layers=loader.spec.num_layers,
        num_slots=2,
        num_kv_heads=loader.spec.num_kv_heads,
        max_tokens=MAX_TOKENS,
        head_dim=loader.spec.head_dim,
        dtype=torch.float32,
        device=torch.device("cpu"),
        is_int8=is_int8,
    )
