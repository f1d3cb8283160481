"""Compared, explained and traded plans as tables; every figure is simulated."""

from collections.abc import Iterable

from rich.table import Table

from llmpq.cli.plan_document import all_precisions, status_of
from llmpq.cli.tables import plain_table
from llmpq.comparison import Explanation, OffloadPlan, StrategyResult, TradePoint
from llmpq.plan import PlanOptions
from llmpq.units import format_bytes, format_seconds


def comparison_table(results: Iterable[StrategyResult], options: PlanOptions) -> Table:
    """Strategies side by side."""
    columns = ("strategy", "tokens/s", "time", "quality loss", "precisions", "devices", "planned in", "status")
    table = plain_table("simulated, with the coordinator's scheduler", columns)
    for result in results:
        estimate = result.estimate
        if estimate is None:
            table.add_row(result.strategy, "", "", "", "", "", "", status_of(result, options))
            continue
        gap = f" (gap {estimate.gap:.1%})" if result.strategy == "llm-pq" and estimate.gap else ""
        table.add_row(
            result.strategy,
            f"{result.throughput_tokens_per_s:.1f}",
            format_seconds(result.simulation.total_s if result.simulation else estimate.total_s),
            f"{estimate.quality_loss:.3f}",
            _precisions(result),
            str(len((result.plan or result.offload).stages)),  # type: ignore[union-attr]
            format_seconds(estimate.solve_s),
            status_of(result, options) + gap,
        )
    return table


def offload_table(strategy: str, plan: OffloadPlan, throughput_tokens_per_s: float) -> Table:
    """What an offloading strategy keeps where."""
    table = plain_table(
        f"{strategy}: {plan.num_blocks} block(s) of {plan.batches_per_block} x {plan.device_batch} sequences; "
        "for comparison only, the mesh cannot run it",
        (
            "device",
            "layers",
            "precision",
            "weights, cache, states on device",
            "device",
            "host",
            "prefill ms",
            "decode ms",
        ),
        caption=f"simulated: {throughput_tokens_per_s:.1f} tokens/s; times are per block",
    )
    for stage in plan.stages:
        shares = (stage.weights_on_device, stage.cache_on_device, stage.states_on_device)
        table.add_row(
            stage.device_id,
            f"{stage.first_layer}-{stage.first_layer + stage.num_layers - 1}",
            stage.scheme,
            ", ".join(f"{share:.0%}" for share in shares),
            format_bytes(stage.device_bytes),
            format_bytes(stage.host_bytes),
            f"{stage.prefill_ms:.1f}",
            f"{stage.decode_ms:.2f}",
        )
    return table


def explanation_table(explanation: Explanation) -> Table:
    """How near each stage is to its limits."""
    title = "what limits each stage: memory of its budget, times of the slowest server's"
    table = plain_table(title, ("device", "memory", "prefill", "decode", "at its limit"))
    for stage in explanation.stages:
        ratios = (stage.memory_ratio, stage.prefill_ratio, stage.decode_ratio)
        table.add_row(stage.device_id, *(f"{ratio:.0%}" for ratio in ratios), ", ".join(stage.binding) or "nothing")
    return table


def counterfactual_table(explanation: Explanation) -> Table:
    """What if; throughputs here are those of the closed formulas, on both sides."""
    base = explanation.plan.estimate
    as_is = f"{base.throughput_tokens_per_s:.1f} tokens/s and a quality loss of {base.quality_loss:.3f}"
    table = plain_table(f"what if; the plan has {as_is}", ("change", "tokens/s", "", "quality loss"))
    for case in explanation.counterfactuals:
        if case.error:
            table.add_row(case.change, "none", "", case.error)
            continue
        change = case.throughput_tokens_per_s / base.throughput_tokens_per_s - 1
        table.add_row(case.change, f"{case.throughput_tokens_per_s:.1f}", f"{change:+.1%}", f"{case.quality_loss:.3f}")
    return table


def trade_table(points: Iterable[TradePoint]) -> Table:
    """Throughput against quality."""
    table = plain_table("throughput against quality (simulated)", ("quality loss", "tokens/s", "precisions", "devices"))
    for point in points:
        table.add_row(
            f"{point.plan.estimate.quality_loss:.3f}",
            f"{point.throughput_tokens_per_s:.1f}",
            _counts(all_precisions(point.plan)),
            str(len(point.plan.stages)),
        )
    return table


def _precisions(result: StrategyResult) -> str:
    if result.plan:
        return _counts(all_precisions(result.plan))
    return f"{result.offload.stages[0].scheme}, offloaded" if result.offload else ""


def _counts(precisions: dict[str, int]) -> str:
    return ", ".join(f"{scheme} x{count}" for scheme, count in precisions.items())
