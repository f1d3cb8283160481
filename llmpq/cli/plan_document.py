"""Compared plans as plain values, for --json."""

from dataclasses import asdict
from typing import Any

from llmpq.comparison import Explanation, StrategyResult, TradePoint
from llmpq.plan import Plan, PlanOptions
from llmpq.report import precision_counts


def status_of(result: StrategyResult, options: PlanOptions) -> str:
    """`optimal` within the gap that was asked for, `feasible`, or why there is no plan, such as `does_not_fit`."""
    if result.estimate is None:
        return result.reason.lower() or "no_plan"
    is_searched = result.strategy == "llm-pq" and result.plan is not None
    is_optimal = is_searched and result.estimate.gap <= options.effective_optimality_gap
    return "optimal" if is_optimal else "feasible"


def result_entry(result: StrategyResult, options: PlanOptions) -> dict[str, Any]:
    """What a strategy came to; the gap is null for strategies that prove none."""
    estimate = result.estimate
    stages = result.plan.stages if result.plan else result.offload.stages if result.offload else ()
    return {
        "strategy": result.strategy,
        "status": status_of(result, options),
        "throughput_tokens_per_s": result.throughput_tokens_per_s if estimate else None,
        "quality_loss": estimate.quality_loss if estimate else None,
        "solve_s": estimate.solve_s if estimate else None,
        "gap": estimate.gap if estimate and result.strategy.startswith("llm-pq") else None,
        "stages": [asdict(stage) for stage in stages],
        "simulation": asdict(result.simulation) if result.simulation else None,
        "plan": asdict(result.plan) if result.plan else None,
        "offload": asdict(result.offload) if result.offload else None,
        "error": result.error,
    }


def explanation_entry(explanation: Explanation) -> dict[str, Any]:
    """An explanation without its plan, which stands among the plans."""
    return {key: value for key, value in asdict(explanation).items() if key not in {"plan", "simulation"}}


def trade_entry(point: TradePoint) -> dict[str, Any]:
    """A point of the front."""
    return {
        "throughput_tokens_per_s": point.throughput_tokens_per_s,
        "quality_loss": point.plan.estimate.quality_loss,
        "gap": point.plan.estimate.gap,
        "precisions": all_precisions(point.plan),
        "plan": asdict(point.plan),
    }


def all_precisions(plan: Plan) -> dict[str, int]:
    """How many layers of the whole model have each precision."""
    return precision_counts([layer for stage in plan.stages for layer in stage.layers])
