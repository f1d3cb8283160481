"""The latency models."""

from dataclasses import replace

import pytest

from llmpq.device import ModelPart, Phase
from llmpq.errors import InvalidInputError
from planner_svc.latency import DeviceLatency, LatencyModel, decode_attention
from planner_svc.workload import Load
from tests.planner_svc.devices import affine_law, device


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize(("sequences", "past"), [(2, 100), (8, 200), (24, 150), (32, 500)])
def test_recovers_a_law_on_unseen_points(phase: Phase, sequences: int, past: int) -> None:
    """A law of fixed, per-row and attention time is predicted to 3 % where nothing was measured."""
    law = affine_law()
    model = DeviceLatency().fit(device("a", law), "devices[0]").layers_["w4", phase]
    tokens, past = (1, past) if phase is Phase.DECODE else (past, 0)
    expected = law("w4", phase, sequences, tokens, past)
    assert model.predict(Load.of(sequences, tokens, past)) == pytest.approx(expected, rel=0.03)


def test_follows_a_cpu_that_gains_from_its_first_rows() -> None:
    """Matrix products of few rows on CPUs rise like a root first; measured ones are met to 15 %."""
    milliseconds = {1: 1.6, 8: 5.2, 32: 9.0}
    model = LatencyModel(decode_attention).fit([Load.of(b, 1, 0) for b in milliseconds], list(milliseconds.values()))
    for b, expected in milliseconds.items():
        assert model.predict(Load.of(b, 1, 0)) == pytest.approx(expected, rel=0.15)


def test_never_predicts_negative_times() -> None:
    """Points that fall with the batch, as noise makes them, still give no negative time or coefficient."""
    model = LatencyModel(decode_attention).fit([Load.of(b, 1, 64) for b in (4, 8, 16)], [3.0, 2.0, 1.0])
    assert (model.coefficients_ >= 0).all()
    assert model.predict(Load.of(0.5, 1, 0)) >= 0
    assert model.predict(Load.of(100, 1, 4000)) > 0


@pytest.mark.parametrize("part", [ModelPart.LAYER, ModelPart.EMBEDDING, ModelPart.HEAD])
def test_missing_points_name_the_device(part: ModelPart) -> None:
    """A device without points for a part cannot be planned for, and the error names device, field and part."""
    profile = device("dev-7", affine_law())
    profile = replace(profile, points=tuple(p for p in profile.points if p.part is not part))
    with pytest.raises(InvalidInputError, match=r"dev-7.*" + part.value.removeprefix("MODEL_PART_").lower()) as caught:
        DeviceLatency().fit(profile, "problem.devices[3]")
    assert caught.value.subject == "problem.devices[3].points"


def test_half_profiled_scheme_is_refused() -> None:
    """A scheme with points of one phase only is a mistake; one without any is merely not used."""
    profile = device("a", affine_law())
    without_w3 = tuple(p for p in profile.points if p.scheme != "w3")
    assert DeviceLatency().fit(replace(profile, points=without_w3), "d").schemes == {"w16", "w8", "w8a8", "w4"}
    half = tuple(p for p in profile.points if (p.scheme, p.phase) != ("w3", Phase.DECODE))
    with pytest.raises(InvalidInputError, match=r"w3 layer PHASE_DECODE"):
        DeviceLatency().fit(replace(profile, points=half), "d")
