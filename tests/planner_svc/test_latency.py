"""The latency models."""

from dataclasses import replace

import pytest

from llmpq.device import LatencyPoint, ModelPart, Phase
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


def test_follows_a_kernel_that_changes_its_path() -> None:
    """A path that takes over at 17 rows, with twice the speed, is met at every number of rows that was measured."""
    milliseconds = {1: 1.0, 8: 4.0, 16: 8.0, 17: 8.1, 32: 9.0, 64: 18.0}
    loads = [Load.of(1, rows, 0) for rows in milliseconds]
    model = LatencyModel().fit(loads, list(milliseconds.values()))
    for rows, expected in milliseconds.items():
        assert model.predict(Load.of(1, rows, 0)) == pytest.approx(expected, rel=1e-6)
    assert model.predict(Load.of(1, 12, 0)) == pytest.approx(6.0, rel=1e-6)
    assert model.predict(Load.of(1, 96, 0)) == pytest.approx(27.0, rel=1e-6)


def test_two_near_points_say_little_of_far_ones() -> None:
    """Where the last point but one was disturbed, larger sizes are not predicted to come for nothing."""
    milliseconds = {128: 29.0, 384: 87.0, 768: 174.0, 1024: 330.0, 1536: 335.0}
    model = LatencyModel().fit([Load.of(1, rows, 0) for rows in milliseconds], list(milliseconds.values()))
    assert model.predict(Load.of(1, 4096, 0)) == pytest.approx(335 + (4096 - 1536) * (335 - 174) / 768, rel=0.01)


def test_a_disturbed_point_is_not_believed() -> None:
    """A time longer than that of more rows was disturbed; of two measurements of the same, the shorter counts."""
    loads = [Load.of(1, rows, 0) for rows in (1, 8, 8, 16)]
    model = LatencyModel().fit(loads, [1.0, 9.0, 2.0, 4.0])
    assert model.predict(loads[1]) == pytest.approx(2.0)
    model = LatencyModel().fit(loads, [1.0, 9.0, 9.0, 4.0])
    assert model.predict(loads[1]) == pytest.approx(4.0)


def test_a_scheme_of_one_context_takes_the_cost_of_attention_from_another() -> None:
    """w4 that was measured at short contexts only is predicted at long ones, by what w16 pays for them."""

    def law(scheme: str, sequences: int, past: int) -> float:
        return {"w16": 2e-3, "w4": 1e-3}[scheme] + 1e-4 * sequences + 2e-8 * sequences * (past + 1)

    profile = device("a", affine_law())
    points = [p for p in profile.points if not (p.part is ModelPart.LAYER and p.phase is Phase.DECODE)]
    for scheme, contexts in (("w16", (32, 1024)), ("w4", (32,))):
        points += [
            LatencyPoint(ModelPart.LAYER, scheme, Phase.DECODE, b, 1, past, round(law(scheme, b, past) * 1e9))
            for b in (1, 8, 32)
            for past in contexts
        ]
    points = [point for point in points if point.scheme in {"", "w16", "w4"}]
    model = DeviceLatency().fit(replace(profile, points=tuple(points)), "d").layers_["w4", Phase.DECODE]
    assert model.predict(Load.of(8, 1, 2000)) == pytest.approx(law("w4", 8, 2000), rel=0.01)


def test_a_frame_costs_what_was_measured_and_nothing_where_it_was_not() -> None:
    """Every stage pays for its frames, the first one for the embedding, the last one for the head."""
    profile = device("a", affine_law())
    load = Load.of(4, 1, 10)
    latency = DeviceLatency().fit(profile, "d")
    assert latency.outside_s(load, is_first=False, is_last=False) == 0.0
    frames = tuple(LatencyPoint(ModelPart.FRAME, "", Phase.PREFILL, rows, 1, 0, 10_000 * rows) for rows in (1, 8))
    latency = DeviceLatency().fit(replace(profile, points=profile.points + frames), "d")
    assert latency.outside_s(load, is_first=False, is_last=False) == pytest.approx(4e-5)
    ends = latency.embedding_.predict(load) + latency.head_.predict(load)
    assert latency.outside_s(load, is_first=True, is_last=True) == pytest.approx(4e-5 + ends)
