"""What transformers makes of the weights that a w16 stage holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from llmpq.model import ModelFiles


@dataclass(frozen=True)
class Reference:
    """A model in transformers, its matrices rounded to 16 bits and computed in float32."""

    model: PreTrainedModel
    tokenizer: AutoTokenizer

    @classmethod
    def load(cls, model: str) -> "Reference":
        """Loads a directory or a GGUF file."""
        files = ModelFiles.locate(model)
        source = files.from_pretrained
        is_directory = files.gguf is None
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype="auto") if is_directory else _from_gguf(files)
        is_bfloat16 = loaded.dtype is torch.bfloat16
        loaded = loaded.float().eval()
        loaded.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)  # greedy, and no token ends it
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
        output = self.model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=num_tokens)
        prompt, whole = (self.tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt_ids, output[0]))
        return whole[len(prompt) :]  # on its own, the answer would lose the space that it begins with


def _from_gguf(files: ModelFiles) -> PreTrainedModel:
    """The model by transformers' own reader of GGUF; its `from_pretrained` would need a further package for it."""
    config = AutoConfig.from_pretrained(**files.from_pretrained)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    tensors = load_gguf_checkpoint(files.directory / files.gguf, return_tensors=True, model_to_load=skeleton)["tensors"]
    return type(skeleton).from_pretrained(None, config=config, state_dict=tensors)
