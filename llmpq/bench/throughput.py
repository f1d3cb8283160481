"""Systems compared on the same work: they take turns, and what each came to stands beside the first one."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from llmpq.bench.system import Run, System
from llmpq.bench.workload import Workload

#: New tokens of each answer in the warm-up, which is not counted.
_WARM_UP_TOKENS = 4


async def take_turns(
    systems: Sequence[System],
    workload: Workload,
    num_runs: int,
    on_run: Callable[[System, int, dict[str, Any]], None],
    *,
    has_phases: bool,
) -> None:
    """Runs each system on the same work, one after another, `num_runs` times over; a warm-up of each goes before.

    Args:
        systems: Who takes part, in this order.
        workload: The work.
        num_runs: Turns.
        on_run: Gets the system, the turn from 0 and the figures of each run.
        has_phases: Also time the prompts alone, for the rates of the two phases.
    """
    warm_up = workload.shortened(_WARM_UP_TOKENS)
    if num_runs:
        for system in systems:
            await system.run(warm_up)
    for turn in range(num_runs):
        for system in systems:
            prefill = await system.run(workload.shortened(1)) if has_phases else None
            on_run(system, turn, run_figures(await system.run(workload), workload, prefill))


def run_figures(run: Run, workload: Workload, prefill: Run | None) -> dict[str, Any]:
    """One run as plain values; rates of the phases if the prompts were also run alone."""
    figures = {
        "wall_s": round(run.wall_s, 4),
        "generated_tokens": run.generated_tokens,
        "tokens_per_s": round(run.tokens_per_s, 2),
        "tail_ratio": run.tail_ratio(),
        "job_s": run.job_s,
    }
    if prefill:
        num_prompt_tokens = sum(map(len, workload.prompts))
        num_decoded = run.generated_tokens - prefill.generated_tokens
        figures["prefill_tokens_per_s"] = round(num_prompt_tokens / prefill.wall_s, 2)
        figures["decode_tokens_per_s"] = round(num_decoded / max(run.wall_s - prefill.wall_s, 1e-9), 2)
    return figures


async def perplexity(system: System, windows: Sequence[Sequence[int]]) -> float:
    """Of every token of each window but its first, given those before it."""
    num_scored = sum(len(window) - 1 for window in windows)
    return math.exp(-await system.score(windows) / num_scored)


def summarized(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Medians of each system's runs, and how many times faster the first system is than it.

    The ratio is the median over the turns that both took: what disturbs a turn disturbs both.

    Args:
        runs: Runs of each system, with their `turn`; ours first.
    """
    if not runs:
        return {}
    reference = {run["turn"]: run["tokens_per_s"] for run in next(iter(runs.values()))}
    summaries = {}
    for name, own in runs.items():
        ratios = [reference[run["turn"]] / run["tokens_per_s"] for run in own if run["turn"] in reference]
        keys = ("tokens_per_s", "wall_s", "prefill_tokens_per_s", "decode_tokens_per_s", "tail_ratio", "job_s")
        medians = {key: _median([run[key] for run in own if run.get(key) is not None]) for key in keys}
        summaries[name] = medians | {"ratio": _median(ratios), "num_runs": len(own)}
    return summaries


def _median(values: Sequence[float]) -> float | None:
    return round(median(values), 4) if values else None
