"""A batch and its plan as plain values with stable keys, for `--json` and report files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmpq.batch import Batch, StageReport
from llmpq.plan import LayerPrecision, StageMemory, StagePlan
from llmpq.schemes import SCHEMES


def batch_report(batch: Batch) -> dict[str, Any]:
    """What became of a batch.

    `wall_s` runs from the first prefill to the last token, so it excludes planning and loading; `tokens_per_s` is
    generated tokens over that time.
    """
    return {
        "batch_id": batch.batch_id,
        "state": batch.state.label,
        "status_message": batch.status_message,
        "model": batch.model,
        "requests_total": batch.requests_total,
        "requests_completed": batch.requests_completed,
        "requests_failed": batch.requests_failed,
        "prompt_tokens": batch.prompt_tokens,
        "generated_tokens": batch.generated_tokens,
        "wall_s": round(batch.running_s, 3),
        "tokens_per_s": round(tokens_per_s(batch), 2),
        "plan_hash": batch.plan.hash if batch.plan else "",
        "stages": stage_reports(batch),
    }


def tokens_per_s(batch: Batch) -> float:
    """Generated tokens per second of running; 0 for a batch that has not ended."""
    return batch.generated_tokens / batch.running_s if batch.running_s else 0.0


def stage_reports(batch: Batch) -> list[dict[str, Any]]:
    """Predicted beside measured for each stage of a planned batch."""
    if batch.plan is None:
        return []
    return [_stage_report(*pair) for pair in zip(batch.plan.stages, batch.stages, strict=False)]


def precision_counts(layers: Sequence[LayerPrecision]) -> dict[str, int]:
    """How many layers have each scheme, the most exact scheme first."""
    counts = Counter(layer.scheme for layer in layers)
    return {scheme: counts[scheme] for scheme in SCHEMES if counts[scheme]}


def _stage_report(planned: StagePlan, measured: StageReport) -> dict[str, Any]:
    return {
        "device_id": planned.device_id,
        "first_layer": planned.first_layer,
        "layers": len(planned.layers),
        "layers_loaded": measured.layers_done,
        "activity": measured.activity,
        "precisions": precision_counts(planned.layers),
        "predicted_memory": _memory(planned.memory),
        "memory": _memory(measured.memory) if measured.memory else None,
        "predicted_prefill_ms": measured.predicted_prefill_ms,
        "measured_prefill_ms": measured.measured_prefill_ms,
        "predicted_decode_ms": measured.predicted_decode_ms,
        "measured_decode_ms": measured.measured_decode_ms,
        "busy_ratio": measured.busy_ratio,
        "waiting_input_ratio": measured.waiting_input_ratio,
        "waiting_output_ratio": measured.waiting_output_ratio,
    }


def _memory(memory: StageMemory) -> dict[str, int]:
    return asdict(memory) | {"used_bytes": memory.used_bytes}
