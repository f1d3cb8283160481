"""Tokens per second of a local mesh beside transformers, on the same prompts, alternating, in one run.

    python benchmarks/throughput.py --model build/models/SmolLM2-135M-Instruct.Q4_1.gguf --stages 2 --scheme w8a8

Both generate the same number of tokens for every prompt, greedily and ignoring the model's end tokens; loading,
planning and a warm-up are not counted. transformers computes in fp32 with all threads, in one batch without padding;
its weights are random, which its speed does not depend on. The figures hold for the machine that is printed with them;
carry the ratio away, not the seconds.
"""

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from llmpq import Client, PlanOptions
from llmpq.cluster_file import local_cluster
from llmpq.local_mesh import local_mesh
from llmpq.model import read_config, read_shape


def main() -> None:
    """Measures and prints one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--scheme", default="w8a8")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    settings = parser.parse_args()
    prompts = _prompts(settings)
    cpu, mesh_s, transformers_s = asyncio.run(_measure(settings, prompts))
    generated = settings.requests * settings.new_tokens
    document = {
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform()},
        "settings": vars(settings),
        "systems": [
            {"name": f"llmpq {settings.scheme}", "wall_s": mesh_s, "tokens_per_s": generated / median(mesh_s)},
            {"name": "transformers fp32", "wall_s": transformers_s, "tokens_per_s": generated / median(transformers_s)},
        ],
        "ratio": median(theirs / ours for ours, theirs in zip(mesh_s, transformers_s, strict=True)),
    }
    print(json.dumps(document, indent=2))


def _prompts(settings: argparse.Namespace) -> list[list[int]]:
    """Token ids that any model has, different in every prompt."""
    vocabulary = read_shape(settings.model).vocab_size
    length = settings.prompt_tokens
    return [
        [(7919 * (row * length + at) + 31) % (vocabulary - 300) + 300 for at in range(length)]
        for row in range(settings.requests)
    ]


async def _measure(settings: argparse.Namespace, prompts: list[list[int]]) -> tuple[str, list[float], list[float]]:
    """The CPU's name, and the wall seconds of each run, ours and theirs, taken in turn."""
    generate = _transformers(settings)
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as state:
        cluster = replace(local_cluster(settings.stages), state=Path(state))
        async with local_mesh(cluster) as coordinator, Client(coordinator) as client:
            cpu = (await client.cluster()).stages[0].description.name
            for run in range(settings.runs + 1):
                mesh_s = await _run_mesh(client, settings, prompts)
                transformers_s = generate(prompts)
                if run:  # the first one warms up
                    ours.append(mesh_s)
                    theirs.append(transformers_s)
    return cpu, ours, theirs


async def _run_mesh(client: Client, settings: argparse.Namespace, prompts: list[list[int]]) -> float:
    body = {"max_tokens": settings.new_tokens, "temperature": 0}
    lines = [
        {"custom_id": str(row), "method": "POST", "url": "/v1/completions", "body": {"prompt": prompt} | body}
        for row, prompt in enumerate(prompts)
    ]
    options = PlanOptions(allowed_schemes=(settings.scheme,), use_all_devices=True)
    batch = await client.submit(lines, model=settings.model, plan_options=options, ignore_stop=True)
    async for latest in client.watch(batch.batch_id):
        batch = latest
    if batch.requests_completed != len(prompts):
        raise SystemExit(f"The batch {batch.state.label}: {batch.status_message}")
    return batch.running_s


def _transformers(settings: argparse.Namespace):  # noqa: ANN202 a closure over the model
    import torch  # noqa: PLC0415 the mesh does not need it in this process
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_config(read_config(settings.model), dtype=torch.float32).eval()
    length = {"max_new_tokens": settings.new_tokens, "min_new_tokens": settings.new_tokens}

    def generate(prompts: list[list[int]]) -> float:
        started = time.monotonic()
        tokens = torch.tensor(prompts)
        model.generate(tokens, attention_mask=torch.ones_like(tokens), pad_token_id=0, do_sample=False, **length)
        return time.monotonic() - started

    return generate


if __name__ == "__main__":
    main()
