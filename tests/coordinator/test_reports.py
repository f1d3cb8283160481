"""Measured beside predicted."""

from array import array

import pytest

from coordinator.links import LoadProgress
from coordinator.reports import PlanMeter
from llmpq.device import Phase
from llmpq.frames import FrameOutput, Sampling, StageTiming
from llmpq.plan import LayerPrecision, Plan, StageMemory, StagePlan
from llmpq.schedule.scheduler import MicroBatch, Piece
from llmpq.schedule.sequence import Sequence

PLAN = Plan(
    model="m",
    strategy="s",
    stages=tuple(
        StagePlan(name, first, (LayerPrecision("w16"),) * 2, prefill_ms=7, decode_ms=3)
        for name, first in (("a", 0), ("b", 2))
    ),
    prefill_micro_batch=2,
    decode_micro_batch=3,
    num_lanes=1,
    max_sequence_tokens=9,
    max_prefill_tokens=9,
)


def _micro_batch(phase: Phase, num_sequences: int) -> MicroBatch:
    sequence = Sequence(1, array("i", [1]), 1, Sampling(), lambda _: False)
    pieces = tuple(Piece(sequence, slot, 0, 1, emits=True) for slot in range(num_sequences))
    return MicroBatch(1, phase, FrameOutput.TOKENS, pieces)


def _timings(first_ms: float, second_ms: float) -> list[StageTiming]:
    return [StageTiming(0, 0, int(first_ms * 1e6)), StageTiming(1, 0, int(second_ms * 1e6))]


def test_full_micro_batches_decide() -> None:
    """The median is over full micro-batches of the phase; only until there is one, over all."""
    meter = PlanMeter(PLAN)
    meter.started()
    for time_ms in (1.0, 2.0, 6.0):
        meter.computed(_micro_batch(Phase.PREFILL, 1), _timings(time_ms, 2 * time_ms))
    assert [report.measured_prefill_ms for report in meter.reports()] == [2, 4]

    meter.computed(_micro_batch(Phase.PREFILL, 2), _timings(8, 9))
    for time_ms in (4.0, 5.0, 5.0):
        meter.computed(_micro_batch(Phase.DECODE, 3), _timings(time_ms, time_ms))
    first, second = meter.reports()

    assert (first.measured_prefill_ms, second.measured_prefill_ms) == (8, 9)
    assert first.measured_decode_ms == 5
    assert (first.predicted_prefill_ms, first.predicted_decode_ms) == (7, 3)


def test_before_anything_ran_there_is_nothing_measured() -> None:
    """Medians and busy ratio are 0 until there is a frame, and memory is unset until the stage is loaded."""
    meter = PlanMeter(PLAN)
    meter.loaded(0, LoadProgress(1, 2, StageMemory(layer_bytes=5)))
    meter.loaded(1, LoadProgress(2, 2, StageMemory(layer_bytes=9)))
    first, second = meter.reports()

    assert (first.measured_prefill_ms, first.measured_decode_ms, first.busy_ratio) == (0, 0, 0)
    assert (first.layers_done, first.layers_total, first.memory) == (1, 2, None)
    assert second.memory == StageMemory(layer_bytes=9)


def test_the_busy_ratio_is_a_share() -> None:
    """A stage that says it computed for longer than the clock has run was busy all the time, not more."""
    meter = PlanMeter(PLAN)
    meter.started()
    meter.computed(_micro_batch(Phase.DECODE, 3), _timings(3_600_000, 0))

    assert [report.busy_ratio for report in meter.reports()] == [pytest.approx(1), 0]


def test_time_between_frames_is_waiting_for_input_or_output() -> None:
    """Until a frame arrives a stage waits for input; one that is there already waits for the one before to leave."""
    meter = PlanMeter(PLAN)
    meter.started()
    hour_ns = 3_600_000_000_000
    for start, wait in ((1, 0), (3, 0), (5, 1)):  # each is computed for an hour
        timing = StageTiming(0, wait * hour_ns, hour_ns, start * hour_ns)
        meter.computed(_micro_batch(Phase.DECODE, 3), [timing])
    stage = meter._stages[0]

    report = stage.report(6 * 3600)

    assert report.busy_ratio == pytest.approx(3 / 6)
    assert report.waiting_input_ratio == pytest.approx(1 / 6)
    assert report.waiting_output_ratio == pytest.approx(1 / 6)
