"""Predicted beside measured: what each stage of a plan was expected to take, and what it takes."""

import time
from collections import deque
from collections.abc import Iterable
from statistics import median

from llmpq.batch import StageReport
from llmpq.device import Phase
from llmpq.frames import StageTiming
from llmpq.plan import Plan, StagePlan
from llmpq.schedule.scheduler import MicroBatch
from llmpq.stage_load import LoadProgress
from llmpq.trace import gaps

#: Latest frames that a median is taken over.
_WINDOW = 512
#: Full micro-batches without which a run says nothing about a device.
_MIN_FULL = 2


class StageMeter:
    """Collects what one stage of a plan really takes.

    Args:
        stage: What was planned for it.
        full_sequences: Sequences of a full micro-batch in each phase.
    """

    def __init__(self, stage: StagePlan, full_sequences: dict[Phase, int]) -> None:
        self._stage = stage
        self._full_sequences = full_sequences
        self._load = LoadProgress(0, len(stage.layers))
        self._full: dict[Phase, deque[int]] = {phase: deque(maxlen=_WINDOW) for phase in Phase}
        self._all: dict[Phase, deque[int]] = {phase: deque(maxlen=_WINDOW) for phase in Phase}
        self._busy_ns = 0
        self._waiting_input_ns = 0
        self._waiting_output_ns = 0
        self._last: StageTiming | None = None

    def loaded(self, progress: LoadProgress) -> None:
        """Takes how far its load is."""
        self._load = progress

    def computed(self, micro_batch: MicroBatch, timing: StageTiming) -> None:
        """Takes the times of one frame; frames come in the order in which they were computed."""
        phase, compute_ns = micro_batch.phase, timing.compute_ns
        self._all[phase].append(compute_ns)
        is_whole = phase is Phase.DECODE or not any(piece.start for piece in micro_batch.pieces)  # no rest of a prompt
        if is_whole and len(micro_batch.pieces) == self._full_sequences[phase]:
            self._full[phase].append(compute_ns)
        self._busy_ns += compute_ns
        for gap in gaps((self._last, timing)) if self._last is not None else ():
            self._waiting_input_ns += gap.arrived - gap.since
            self._waiting_output_ns += gap.until - gap.arrived
        self._last = timing

    def report(self, running_s: float) -> StageReport:
        """The report after so many seconds of running."""
        is_loaded = self._load.layers_done == self._load.layers_total
        return StageReport(
            device_id=self._stage.device_id,
            layers_done=self._load.layers_done,
            layers_total=self._load.layers_total,
            memory=self._load.memory if is_loaded else None,
            predicted_prefill_ms=self._stage.prefill_ms,
            measured_prefill_ms=self._median_ms(Phase.PREFILL),
            predicted_decode_ms=self._stage.decode_ms,
            measured_decode_ms=self._median_ms(Phase.DECODE),
            busy_ratio=_share(self._busy_ns, running_s),
            waiting_input_ratio=_share(self._waiting_input_ns, running_s),
            waiting_output_ratio=_share(self._waiting_output_ns, running_s),
            activity=self._load.activity,
        )

    def ratios(self) -> dict[Phase, float]:
        """Measured over predicted time of a full micro-batch, in the phases that had enough of them."""
        predicted_ms = {Phase.PREFILL: self._stage.prefill_ms, Phase.DECODE: self._stage.decode_ms}
        return {
            phase: median(self._full[phase]) / 1e6 / predicted_ms[phase]
            for phase in Phase
            if len(self._full[phase]) >= _MIN_FULL and predicted_ms[phase]
        }

    def _median_ms(self, phase: Phase) -> float:
        durations = self._full[phase] or self._all[phase]
        return median(durations) / 1e6 if durations else 0.0


def _share(time_ns: int, running_s: float) -> float:
    return min(time_ns / 1e9 / running_s, 1.0) if running_s else 0.0


class PlanMeter:
    """The meters of all stages of a plan."""

    def __init__(self, plan: Plan) -> None:
        full_sequences = {Phase.PREFILL: plan.prefill_micro_batch, Phase.DECODE: plan.decode_micro_batch}
        self._stages = [StageMeter(stage, full_sequences) for stage in plan.stages]
        self._started: float | None = None

    def loaded(self, stage: int, progress: LoadProgress) -> None:
        """Takes how far the load of a stage is."""
        self._stages[stage].loaded(progress)

    def started(self) -> None:
        """Starts the clock that busy ratios are taken by."""
        self._started = time.monotonic()

    def computed(self, micro_batch: MicroBatch, timings: Iterable[StageTiming]) -> None:
        """Takes the times of one frame on its way through the stages."""
        for timing in timings:
            self._stages[timing.stage].computed(micro_batch, timing)

    def reports(self) -> tuple[StageReport, ...]:
        """One report a stage."""
        running_s = time.monotonic() - self._started if self._started is not None else 0.0
        return tuple(stage.report(running_s) for stage in self._stages)

    def ratios(self) -> list[dict[Phase, float]]:
        """Of each stage, see `StageMeter.ratios`."""
        return [stage.ratios() for stage in self._stages]
