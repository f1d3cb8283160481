"""Which points a profile has."""

import pytest
import torch
from parity_models import SaveModel

from llmpq.device import ModelPart, Phase
from llmpq.errors import DoesNotFitError
from llmpq.profile_request import ProfileRequest
from stage_server.config import StageConfig
from stage_server.device import open_device
from stage_server.dry_allocation import require_memory
from stage_server.loader import ModelLoader
from stage_server.process_memory import process_bytes
from stage_server.profile_grid import LayerGrid
from stage_server.profiler import LayerProfiler


def test_a_profile_has_every_part_and_each_scheme_in_both_phases(save_model: SaveModel) -> None:
    """As many points as are announced; every one took time; contexts are measured at one scheme."""
    model, _ = save_model("llama-mha-tied")
    device = open_device(StageConfig(device="cpu"))
    loader = ModelLoader(model, device.torch_device, device.compute_dtype)
    with torch.no_grad():
        profiler = LayerProfiler(loader, device, ProfileRequest(model, ("w16", "w4"), 32))
        points = list(profiler.points())
    assert len(points) == profiler.num_points
    assert all(point.duration_ns > 0 for point in points)
    assert {point.part for point in points} == set(ModelPart)
    layers = {(point.scheme, point.phase) for point in points if point.part is ModelPart.LAYER}
    assert layers == {(scheme, phase) for scheme in ("w16", "w4") for phase in Phase}
    of_scheme = {scheme: sum(point.scheme == scheme for point in points) for scheme in ("w16", "w4")}
    assert of_scheme["w16"] > of_scheme["w4"]


def test_the_grid_keeps_to_the_context_and_the_memory() -> None:
    """No point is longer than the model's context, nor is its cache larger than allowed."""
    grid = LayerGrid.of(max_positions=100, bytes_per_token=1000, max_cache_bytes=500_000)
    for sequences, tokens, past in grid.sizes + grid.contexts:
        assert tokens + past < 100
        assert sequences * (tokens + past) * 1000 <= 500_000
    assert {tokens == 1 for _, tokens, _ in grid.sizes} == {True, False}


def test_memory_that_is_not_there_is_missed_before_it_is_needed() -> None:
    """The error names device, use and bytes; memory that is there is given back."""
    require_memory("cpu-0", "Temporaries", 2**20, torch.device("cpu"))
    with pytest.raises(DoesNotFitError, match=r"Temporaries.*cpu-0"):
        require_memory("cpu-0", "Temporaries", 2**60, torch.device("cpu"))


def test_the_memory_of_the_process_grows_with_what_it_holds() -> None:
    """A tensor that is written to counts with about its bytes."""
    before = process_bytes()
    held = torch.ones(2**24)
    assert process_bytes() - before == pytest.approx(held.nbytes, rel=0.05)
