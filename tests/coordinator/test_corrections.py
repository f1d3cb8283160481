"""What runs teach about profiles."""

from pathlib import Path

import pytest

from coordinator.corrections import CorrectionStore, LatencyCorrection, mean_ratios
from llmpq.device import DeviceDescription, LatencyPoint, ModelPart, Phase
from llmpq.measurements import MeasurementCache
from llmpq.model import ModelShape

DEVICE = DeviceDescription("cpu", "test", "avx2", 1, 2 * 10**9, 10**9, ("w16",), 4)
SHAPE = ModelShape("llama", 2, 64, 128, 4, 2, 16, 256, 512, gated_ffn=True, tied_embeddings=True)


def test_repeated_runs_converge_to_what_is_measured() -> None:
    """A device that is 40 % slower in decode than profiled is planned with its true speed after a few runs."""
    correction = LatencyCorrection()
    for _ in range(8):
        correction = correction.learned({Phase.DECODE: 1.4 / correction.decode})
    assert correction.decode == pytest.approx(1.4, rel=0.01)
    assert correction.prefill == 1.0


def test_one_of_many_runs_moves_little() -> None:
    """Noise averages out: a run that was disturbed is made up for by those after it, which count a half each."""
    correction = LatencyCorrection(decode=1.4)
    disturbed = correction.learned({Phase.DECODE: 2.0})
    assert disturbed.decode == pytest.approx(1.4 * 2.0**0.5)
    for _ in range(10):
        disturbed = disturbed.learned({Phase.DECODE: 1.4 / disturbed.decode})
    assert disturbed.decode == pytest.approx(1.4, rel=0.02)


def test_stages_of_one_kind_teach_together() -> None:
    """Of two stages on devices of a kind, of which one was underrated and one overrated, the kind learns nothing."""
    assert mean_ratios([{Phase.DECODE: 2.0}, {Phase.DECODE: 0.5, Phase.PREFILL: 1.3}]) == {
        Phase.DECODE: pytest.approx(1.0),
        Phase.PREFILL: pytest.approx(1.3),
    }


def test_a_run_that_was_far_off_teaches_nothing() -> None:
    """A host that was busy with something else for a whole run does not spoil the profile."""
    busy = {Phase.DECODE: 5.0, Phase.PREFILL: 0.1}
    assert LatencyCorrection().learned(mean_ratios([busy])) == LatencyCorrection()
    assert mean_ratios([busy, {Phase.DECODE: 1.1}]) == {Phase.DECODE: pytest.approx(1.1)}


def test_layers_in_prefill_and_all_else_have_their_factors() -> None:
    """Prefill points of layers take prefill's factor; the others, of layers and outside them, that of decode."""
    correction = LatencyCorrection(prefill=2.0, decode=3.0)
    for part, phase, expected in (
        (ModelPart.LAYER, Phase.PREFILL, 2000),
        (ModelPart.LAYER, Phase.DECODE, 3000),
        (ModelPart.HEAD, Phase.DECODE, 3000),
        (ModelPart.FRAME, Phase.PREFILL, 3000),
    ):
        assert correction.applied(LatencyPoint(part, "", phase, 1, 1, 0, 1000)).duration_ns == expected


def test_a_stage_of_few_layers_does_not_spoil_them() -> None:
    """Where nearly all of its time is spent outside of layers, these come out as slow as the rest, not slower."""
    points = [
        LatencyPoint(part, "", Phase.DECODE, 1, 1, 0, duration_ns)
        for part, duration_ns in ((ModelPart.LAYER, 400_000), (ModelPart.HEAD, 3_000_000), (ModelPart.FRAME, 1_000_000))
    ]
    measured_ns = 1.3 * sum(point.duration_ns for point in points)
    correction = LatencyCorrection()
    for _ in range(10):
        predicted_ns = sum(correction.applied(point).duration_ns for point in points)
        correction = correction.learned({Phase.DECODE: measured_ns / predicted_ns})
    assert correction.decode == pytest.approx(1.3, rel=0.01)


def test_corrections_of_another_design_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors that were learned for something else are as if no batch had run."""
    store = CorrectionStore(MeasurementCache(tmp_path))
    store.learn(DEVICE, SHAPE, {Phase.DECODE: 2.5})
    monkeypatch.setattr("coordinator.corrections._DESIGN", 0)
    assert store.of(DEVICE, SHAPE) == LatencyCorrection()


def test_corrections_outlive_the_process_and_belong_to_a_kind_of_device(tmp_path: Path) -> None:
    """They are read again from the same directory, hold for another memory budget, and not for another CPU class."""
    CorrectionStore(MeasurementCache(tmp_path)).learn(DEVICE, SHAPE, {Phase.PREFILL: 1.21})
    again = CorrectionStore(MeasurementCache(tmp_path))
    roomier = DeviceDescription("cpu", "test", "avx2", 1, 4 * 10**9, 3 * 10**9, ("w16",), 4)
    other = DeviceDescription("cpu", "test", "sse4", 1, 2 * 10**9, 10**9, ("w16",), 4)
    assert again.of(roomier, SHAPE).prefill == pytest.approx(1.1)
    assert again.of(other, SHAPE) == LatencyCorrection()
    again.forget(DEVICE, SHAPE)
    assert again.of(DEVICE, SHAPE) == LatencyCorrection()
