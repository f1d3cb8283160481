"""What transformers makes of the weights that a w16 stage holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from llmpq.model import ModelFiles


@dataclass(frozen=True)
class Reference:
    """A model in transformers, its matrices rounded to 16 bits and computed in float32."""

    model: PreTrainedModel
    tokenizer: AutoTokenizer

    @classmethod
    def load(cls, model: str) -> "Reference":
        """Loads a directory or a GGUF file."""
        source = ModelFiles.locate(model).from_pretrained
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype="auto")
        is_bfloat16 = loaded.dtype is torch.bfloat16
        loaded = loaded.float().eval()
        for parameter in loaded.parameters():
            if parameter.ndim == 2 and not is_bfloat16:  # norms and biases are not rounded
                rounded = parameter.data.half()
                parameter.data = rounded.float() if rounded.isfinite().all() else parameter.data.bfloat16().float()
        return cls(loaded, AutoTokenizer.from_pretrained(**source))

    def complete(self, prompt: str, num_tokens: int) -> str:
        """The text of `num_tokens` greedy tokens after a prompt, whatever they are."""
        return self.complete_ids(self.tokenizer(prompt).input_ids, num_tokens)

    def complete_ids(self, prompt_ids: Sequence[int], num_tokens: int) -> str:
        """As `complete`, for a prompt in tokens."""
        inputs = torch.tensor([list(prompt_ids)])
        greedy = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
        output = self.model.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=greedy)
        return self.tokenizer.decode(output[0, len(prompt_ids) :], skip_special_tokens=True)
