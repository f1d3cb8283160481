"""Two unlike CPU stages of this machine, and what plans come to on them: tokens per second and perplexity, measured."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median_low
from typing import Any

from llmpq import Client, PlanOptions
from llmpq.cluster_file import ClusterSpec, StageSpec
from llmpq.model import read_shape
from llmpq.plan import LengthBucket

ROOT = Path(__file__).parent.parent
MODEL = str(ROOT / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf")
#: CPU classes of the two stages.
CLUSTERS = {"avx512+sse4": ("avx512", "sse4"), "avx512+avx2": ("avx512", "avx2")}
WORKLOADS = {
    "prompt-heavy": LengthBucket(prompt_tokens=144, output_tokens=8, count=12),
    "balanced": LengthBucket(prompt_tokens=80, output_tokens=24, count=12),
    "generation-heavy": LengthBucket(prompt_tokens=24, output_tokens=64, count=12),
}
#: Memory of the newer and of the older stage, in MB.
BUDGETS_MB = (216, 144)
NUM_RUNS = 3


def two_stages(name: str, state: Path) -> ClusterSpec:
    """The cluster of that name, each stage on a core of its own.

    Args:
        name: One of `CLUSTERS`.
        state: Where its coordinator keeps what it measures.
    """
    stages = tuple(
        StageSpec(cpu_class, cpu_class=cpu_class, cores=(core,), memory_budget_bytes=budget_mb * 10**6)
        for core, (cpu_class, budget_mb) in enumerate(zip(CLUSTERS[name], BUDGETS_MB, strict=True))
    )
    return ClusterSpec(stages, state=state.resolve())


async def run_batches(client: Client, model: str, workload: LengthBucket, options: PlanOptions) -> dict[str, Any]:
    """Runs the same batch `NUM_RUNS` times, one after another, so that stages keep their weights.

    Returns:
        Wall and predicted seconds of each, tokens per second of the median one, and its plan; or the error.
    """
    lines = _lines(workload, read_shape(model).vocab_size)
    batches = []
    for _ in range(NUM_RUNS):
        batch = await client.submit(lines, model=model, plan_options=options, ignore_stop=True)
        async for latest in client.watch(batch.batch_id):
            batch = latest
        if batch.plan is None or batch.requests_completed != workload.count:
            return {"error": batch.status_message, "tokens_per_s": None}
        batches.append(batch)
    typical = median_low((batch.running_s, number) for number, batch in enumerate(batches))[1]
    plan = batches[typical].plan
    return {
        "wall_s": [batch.running_s for batch in batches],
        "tokens_per_s": workload.count * workload.output_tokens / batches[typical].running_s,
        "predicted_s": [batch.plan.estimate.total_s for batch in batches],
        "quality_loss": plan.estimate.quality_loss,
        "stages": [[stage.device_id, len(stage.layers)] for stage in plan.stages],
        "schemes": [layer.scheme for stage in plan.stages for layer in stage.layers],
        "micro_batches": [plan.prefill_micro_batch, plan.decode_micro_batch, plan.num_lanes],
    }


def perplexity(model: str, schemes: list[str], num_tokens: int, *, has_int8_kv_cache: bool = False) -> float:
    """Perplexity on the first tokens of WikiText-2 with each layer at its scheme, on the weights that stages serve."""
    command = [sys.executable, "-m", "llmpq.cli", "eval", "ppl", "--model", model, "--json"]
    command += ["--text", str(ROOT / "tests/data/wikitext/wiki.test.head.raw"), "--window", "1024"]
    command += ["--tokens", str(num_tokens), "--precisions", ",".join(schemes)]
    command += ["--int8-kv-cache"] if has_int8_kv_cache else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 our own command
    return float(json.loads(done.stdout)["perplexity"])


def layer_counts(schemes: list[str]) -> str:
    """How many layers have each scheme."""
    return " ".join(f"{scheme} x{schemes.count(scheme)}" for scheme in dict.fromkeys(schemes))


def _lines(workload: LengthBucket, vocabulary: int) -> list[dict[str, Any]]:
    return [
        {
            "custom_id": str(row),
            "method": "POST",
            "url": "/v1/completions",
            "body": {
                "prompt": _prompt(row, workload.prompt_tokens, vocabulary),
                "max_tokens": workload.output_tokens,
                "temperature": 0,
            },
        }
        for row in range(workload.count)
    ]


def _prompt(row: int, length: int, vocabulary: int) -> list[int]:
    """Token ids that any model has, different in every prompt."""
    return [(7919 * (row * length + at) + 31) % (vocabulary - 300) + 300 for at in range(length)]
