"""transformers: `generate` in padded batches of requests of like length, in the faster of float32 and bfloat16."""

import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, StoppingCriteria

#: Requests of a batch at most.
_MAX_BATCH = 128
#: The trial that chooses the type: sequences, tokens of each prompt, new tokens.
_TRIAL = (8, 64, 8)


class Peer:
    """See `__main__`.

    Args:
        model: A directory with unquantized weights.
        threads: CPU threads.
        unused: What other systems want to know.
    """

    version = transformers.__version__

    def __init__(self, model: str, threads: int, **unused: Any) -> None:  # noqa: ARG002 the same job for all
        torch.set_num_threads(threads)
        transformers.utils.logging.set_verbosity_error()
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._model.generation_config.eos_token_id = None  # `_Lengths` ends each sequence
        self._choose_type()
        chosen = str(self._model.dtype).removeprefix("torch.")
        self.settings = f"{chosen}, {threads} threads, left-padded batches of up to {_MAX_BATCH}"

    def generate(
        self, prompts: list[list[int]], max_tokens: list[int], stops: list[int], on_step: Callable[[int], None]
    ) -> None:
        """Answers all prompts greedily; reports the new tokens of each step."""
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]) + max_tokens[at])
        for begin in range(0, len(order), _MAX_BATCH):
            batch = order[begin : begin + _MAX_BATCH]
            self._generate([prompts[at] for at in batch], [max_tokens[at] for at in batch], stops, on_step)

    def score(self, window: list[int]) -> float:
        """The log-probability of all tokens of a window but the first."""
        tokens = torch.tensor([window])
        with torch.inference_mode():
            logprobs = self._model(tokens).logits[0, :-1].float().log_softmax(-1)
        return float(logprobs.gather(1, tokens[0, 1:, None]).sum())

    def _generate(
        self, prompts: list[list[int]], max_tokens: list[int], stops: list[int], on_step: Callable[[int], None]
    ) -> None:
        width = max(map(len, prompts))
        self._model.generate(
            torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts]),
            attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
            do_sample=False,
            max_new_tokens=max(max_tokens),
            pad_token_id=0,
            stopping_criteria=[_Lengths(width, max_tokens, stops, on_step)],
        )

    def _choose_type(self) -> None:
        """Keeps the model in the type that does a small trial faster: bfloat16 is slow where it is emulated."""
        seconds = {}
        num_sequences, num_tokens, num_new = _TRIAL
        prompts = [list(range(100, 100 + num_tokens))] * num_sequences
        for dtype in (torch.bfloat16, torch.float32):
            trial = self._model.to(dtype)
            self._generate(prompts, [2] * num_sequences, [], lambda _: None)
            started = time.perf_counter()
            self._generate(prompts, [num_new] * num_sequences, [], lambda _: None)
            seconds[dtype] = time.perf_counter() - started
        self._model = trial.to(min(seconds, key=lambda dtype: seconds[dtype]))


class _Lengths(StoppingCriteria):
    """Ends each sequence at its own length or stop token, and counts what each step adds."""

    def __init__(self, width: int, max_tokens: list[int], stops: list[int], on_step: Callable[[int], None]) -> None:
        self._width = width
        self._max_tokens = torch.tensor(max_tokens)
        self._stops = torch.tensor(stops, dtype=torch.long)
        self._is_done = torch.zeros(len(max_tokens), dtype=torch.bool)
        self._on_step = on_step

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002 called so
        """Takes (batch, tokens) so far; returns (batch,) bool."""
        self._on_step(int((~self._is_done).sum()))
        is_long = self._max_tokens <= input_ids.shape[1] - self._width
        self._is_done = self._is_done | is_long | torch.isin(input_ids[:, -1], self._stops)
        return self._is_done
