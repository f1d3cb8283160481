"""Small models with random weights, saved as Hugging Face directories: what parity with transformers is shown on."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 320
CONTEXT = 256
#: Tokens that a query of a windowed layer sees.
WINDOW = 20

#: What models of further families have beside the sizes of `save_random`, each with what tells its family from Llama.
FAMILIES: dict[str, dict[str, object]] = {
    "Gemma2": {"head_dim": 32, "sliding_window": WINDOW, "final_logit_softcapping": 5.0},
    "Gemma3": {"head_dim": 32, "sliding_window": WINDOW, "sliding_window_pattern": 2},
    "Mistral": {"sliding_window": WINDOW},
    "Phi3": {"sliding_window": None},
    "Qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3},
    "Qwen3": {"head_dim": 32},
}


def save_random_opt(directory: Path) -> Path:
    """An OPT of 5 layers: learned positions, biases, ReLU, tied head."""
    config = OPTConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=160,
        num_hidden_layers=5,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        dropout=0.0,
        **_special_ids(),
    )
    return _save(OPTForCausalLM(config), directory)


def save_random_llama(directory: Path, *, is_tied: bool) -> Path:
    """A Llama of 5 layers: rotary positions, 6 query heads over 2 key/value heads, gated SiLU."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=is_tied,
        **_special_ids(),
    )
    return _save(LlamaForCausalLM(config), directory)


def save_wide_llama(directory: Path) -> Path:
    """A Llama of 3 layers with little between hidden states that are as wide as those of a large model."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=8192,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **_special_ids(),
    )
    return _save(LlamaForCausalLM(config), directory)


def save_random(directory: Path, family: str) -> Path:
    """A model of 5 layers of one of FAMILIES: 6 query heads over 2 key/value heads, gated feed-forward, tied head."""
    name = f"{family}TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, name)(
        vocab_size=VOCAB_SIZE,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **_special_ids(),
        **FAMILIES[family],
    )
    return _save(getattr(transformers, f"{family}ForCausalLM")(config), directory)


def _special_ids() -> dict[str, int]:
    return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _save(model: PreTrainedModel, directory: Path) -> Path:
    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_matrix = parameter.ndim > 1
            parameter.copy_(noise * 2 * parameter.shape[-1] ** -0.5 if is_matrix else parameter + 0.1 * noise)
    model.save_pretrained(directory)
    _tokenizer().save_pretrained(directory)
    return directory


def _tokenizer() -> PreTrainedTokenizerFast:
    """One word a token and one token a word, so that two texts are equal only if their tokens are."""
    words = ["<pad>", "<s>", "</s>", *(f"w{index}" for index in range(3, VOCAB_SIZE))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))  # noqa: S106 no password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",  # noqa: S106 no password
        eos_token="</s>",  # noqa: S106 no password
        pad_token="<pad>",  # noqa: S106 no password
    )
