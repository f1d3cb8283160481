"""llama.cpp, through its Python package: continuous batches on one process, or layers spread over its RPC servers."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llama_cpp
import llamacpp_rpc
import numpy as np
from llamacpp_files import quantized

#: Tokens of a batch, and of what is computed at once.
_BATCH, _MICRO_BATCH = 2048, 512
#: Tokens of KV cache at most; a long context leaves room for fewer sequences.
_MAX_CACHED = 131_072
_MAX_SEQUENCES = 128


@dataclass
class _Active:
    """A sequence that is being answered."""

    position: int
    token: int
    left: int


class Peer:
    """See `__main__`.

    Args:
        gguf: The model as a .gguf file.
        threads: CPU threads; with RPC, servers of one thread each.
        variant: A quantization that llama.cpp knows, such as `q4_0`, with `rpc-` before it to spread the layers.
        cache: A directory for the quantized file, made here once.
        num_sequences: Most requests of a run.
        max_length: Most tokens of a request, prompt and answer.
        unused: What other systems want to know.
    """

    version = llama_cpp.__version__

    def __init__(
        self,
        *,
        gguf: str,
        threads: int,
        variant: str,
        cache: str,
        num_sequences: int,
        max_length: int,
        **unused: Any,  # noqa: ARG002 the same job for all
    ) -> None:
        if not gguf:
            raise ValueError("llama.cpp needs the model as a .gguf file")
        kind, _, quantization = variant.rpartition("-")
        file = quantized(gguf, quantization, cache)
        parameters = llama_cpp.llama_model_default_params()
        if kind == "rpc":
            self._devices = llamacpp_rpc.devices(threads)
            llamacpp_rpc.place_on(self._devices, parameters)
            self.settings = f"{quantization.upper()}, RPC to {threads} servers of one thread"
        else:
            self.settings = f"{quantization.upper()}, {threads} threads"
        self._threads = threads
        self._model = llama_cpp.llama_model_load_from_file(file.encode(), parameters)
        self._num_words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._num_slots = max(1, min(num_sequences, _MAX_SEQUENCES, _MAX_CACHED // max_length))
        self._context = self._new_context(self._num_slots, max_length)
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self.settings += f", up to {self._num_slots} sequences at once, flash attention"

    def generate(
        self, prompts: list[list[int]], max_tokens: list[int], stops: list[int], on_step: Callable[[int], None]
    ) -> None:
        """Answers all prompts greedily; reports the new tokens of each step.

        Prompts are taken before the next decode step as long as there are free slots. A batch holds prompts or decode
        steps, not both: sequences of unlike lengths in one batch are computed apart anyway.
        """
        waiting = deque(zip(prompts, max_tokens, strict=True))
        free = list(range(self._num_slots))
        active: dict[int, _Active] = {}
        while waiting or active:
            fresh: dict[int, _Active] = {}
            rows: list[tuple[int, int, int, bool]] = []
            while waiting and free and (not rows or len(rows) + len(waiting[0][0]) <= _BATCH):
                prompt, limit = waiting.popleft()
                slot = free.pop()
                rows += [(token, at, slot, at == len(prompt) - 1) for at, token in enumerate(prompt)]
                fresh[slot] = _Active(len(prompt), 0, limit)
            if not fresh:
                rows = [(sequence.token, sequence.position, slot, True) for slot, sequence in active.items()]
                for sequence in active.values():
                    sequence.position += 1
            active |= fresh
            advanced = fresh or active
            tokens = self._decoded(self._context, rows).argmax(1).tolist()
            on_step(len(tokens))
            for (slot, sequence), token in zip(list(advanced.items()), tokens, strict=True):
                sequence.token, sequence.left = token, sequence.left - 1
                if not sequence.left or token in stops:
                    llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), slot, -1, -1)
                    free.append(slot)
                    del active[slot]

    def score(self, window: list[int]) -> float:
        """The log-probability of all tokens of a window but the first."""
        context = self._new_context(1, len(window))
        logits = self._decoded(context, [(token, at, 0, True) for at, token in enumerate(window)])
        logits = logits[:-1].astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        logprobs = logits[np.arange(len(window) - 1), window[1:]] - np.log(np.exp(logits).sum(1))
        llama_cpp.llama_free(context)
        return float(logprobs.sum())

    def _new_context(self, num_slots: int, max_length: int) -> llama_cpp.llama_context_p:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = num_slots * (-(-max_length // 256) * 256)
        parameters.n_seq_max = num_slots
        parameters.n_batch, parameters.n_ubatch = _BATCH, _MICRO_BATCH
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        return llama_cpp.llama_init_from_model(self._model, parameters)

    def _decoded(self, context: llama_cpp.llama_context_p, rows: list[tuple[int, int, int, bool]]) -> np.ndarray:
        """Computes (token, position, slot, whether its logits are wanted); returns float32 (wanted, vocabulary).

        A view of llama.cpp's memory, good until the next call.
        """
        batch = self._batch
        batch.n_tokens = len(rows)
        for at, (token, position, slot, is_wanted) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, is_wanted
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, slot
        status = llama_cpp.llama_decode(context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        num_wanted = sum(row[3] for row in rows)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(num_wanted, self._num_words))
