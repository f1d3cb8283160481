"""Plans, clusters and batches as tables."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich import box
from rich.table import Table

from llmpq.batch import Batch, Cluster
from llmpq.cli.task_scores import TaskScore
from llmpq.plan import Plan, StageMemory, StagePlan
from llmpq.report import precision_counts, tokens_per_s
from llmpq.units import format_bytes, format_seconds

#: Columns that are copied, or of one word: never wrapped.
_WHOLE = {"device", "address", "batch", "state"}


def plan_table(plan: Plan) -> Table:
    """Which device runs which layers at which precision, and what the planner expects of it."""
    estimate = plan.estimate
    gap = f"at most {estimate.gap:.1%} from optimal, " if estimate.gap else ""
    groups = f"in groups of {estimate.layers_per_group} layers first, " if estimate.layers_per_group else ""
    table = plain_table(
        f"{plan.strategy}: {plan.num_lanes} lane(s) of {plan.decode_micro_batch} sequences, "
        f"prefill of {plan.prefill_micro_batch} at a time; times are per micro-batch",
        ("device", "layers", "precisions", "memory used of budget", "prefill ms", "decode ms"),
        caption=f"expected: {format_seconds(estimate.total_s)}, {estimate.throughput_tokens_per_s:.1f} tokens/s, "
        f"quality loss {estimate.quality_loss:.3f} (w4 on every layer is 1), "
        f"{gap}planned {groups}in {format_seconds(estimate.solve_s)}",
    )
    for stage in plan.stages:
        timings = (f"{stage.prefill_ms:.1f}", f"{stage.decode_ms:.2f}")
        table.add_row(*_placement(stage), _memory(stage.memory), *timings)
    return table


def stage_table(batch: Batch, plan: Plan) -> Table:
    """Predicted beside measured for each stage of a batch."""
    table = plain_table(
        "predicted -> measured, per micro-batch",
        (
            "device",
            "layers",
            "precisions",
            "memory used of budget",
            "prefill ms",
            "decode ms",
            "busy, waiting for input, output",
        ),
    )
    for planned, stage in zip(plan.stages, batch.stages, strict=False):
        table.add_row(
            *_placement(planned),
            _memory(stage.memory or planned.memory),
            f"{stage.predicted_prefill_ms:.1f} -> {stage.measured_prefill_ms:.1f}",
            f"{stage.predicted_decode_ms:.2f} -> {stage.measured_decode_ms:.2f}",
            f"{stage.busy_ratio:.0%}, {stage.waiting_input_ratio:.0%}, {stage.waiting_output_ratio:.0%}",
        )
    return table


def cluster_table(cluster: Cluster) -> Table:
    """The members and what they are."""
    table = plain_table(
        f"cluster (planner at {cluster.planner_address})",
        ("device", "address", "kind", "threads", "memory budget", "precisions", "plan"),
    )
    for stage in cluster.stages:
        device = stage.description
        table.add_row(
            stage.device_id,
            stage.address,
            f"{device.kind} {device.cpu_class}".strip(),
            str(device.num_threads or ""),
            format_bytes(device.memory_budget_bytes),
            " ".join(device.schemes),
            stage.plan_hash[:8],
        )
    return table


def score_table(scores: Iterable[TaskScore], precisions: Mapping[str, int]) -> Table:
    """The figures of tasks, one a line, with standard errors."""
    served = ", ".join(f"{scheme} x{count}" for scheme, count in precisions.items())
    table = plain_table(f"tasks, layers at {served}", ("task", "items", "acc", "acc_norm", "perplexity"))
    for score in scores:
        table.add_row(
            score.task,
            str(score.items),
            _with_error(score.acc, score.acc_stderr),
            _with_error(score.acc_norm, score.acc_norm_stderr),
            "" if score.perplexity is None else f"{score.perplexity:.4f}",
        )
    return table


def batch_table(batches: Iterable[Batch]) -> Table:
    """Batches, one a line."""
    table = plain_table("batches", ("batch", "state", "answered", "tokens", "model"))
    for batch in batches:
        failed = f", {batch.requests_failed} failed" if batch.requests_failed else ""
        rate = f", {tokens_per_s(batch):.1f}/s" if batch.running_s else ""
        table.add_row(
            batch.batch_id,
            batch.state.label,
            f"{batch.requests_completed} of {batch.requests_total}{failed}",
            f"{batch.generated_tokens:,}{rate}",
            Path(batch.model).name,
        )
    return table


def plain_table(title: str, columns: Iterable[str], caption: str | None = None) -> Table:
    """A table in the style of all others, empty yet."""
    table = Table(
        title=f"\n{title}",
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,  # leaves more of a narrow terminal to the columns
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        table.add_column(column, no_wrap=column in _WHOLE, overflow="fold")
    return table


def _placement(stage: StagePlan) -> tuple[str, str, str]:
    """Device, layers and precisions: `fast`, `0-17`, `w8 x12, w4 x6`."""
    precisions = ", ".join(f"{scheme} x{count}" for scheme, count in precision_counts(stage.layers).items())
    last_layer = stage.end_layer - 1
    layers = f"{stage.first_layer}-{last_layer}" if last_layer > stage.first_layer else str(last_layer)
    return stage.device_id, layers, precisions


def _with_error(value: float | None, stderr: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"


def _memory(memory: StageMemory) -> str:
    return f"{format_bytes(memory.used_bytes)} of {format_bytes(memory.budget_bytes)}"
