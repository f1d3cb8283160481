"""What a checkpoint has beside its weights: configuration, tokenizer, generation settings."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmpq.errors import InvalidInputError
from llmpq.model import ModelFiles, read_config
from llmpq.tokenizer import load_tokenizer

#: Files of a tokenizer and of its chat template, and settings of generation.
_COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
)


def write_config(
    model: str, directory: Path, quantization: dict[str, Any] | None, dtype: torch.dtype, *, is_tied: bool
) -> None:
    """Writes a model's `config.json` with a new quantization_config.

    Args:
        model: A directory or a .gguf file.
        directory: Where to.
        quantization: The new one; None for plain floats.
        dtype: Type of what is not quantized.
        is_tied: Whether the checkpoint has no head of its own.
    """
    config = read_config(model).as_transformers()
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if quantization is not None:
        config.quantization_config = quantization
    config.architectures = config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.tie_word_embeddings = is_tied
    config.dtype = dtype
    config.to_json_file(directory / "config.json", use_diff=True)


def copy_tokenizer(model: str, directory: Path) -> bool:
    """Copies tokenizer and generation settings; those inside a GGUF file become files. Whether there is a tokenizer."""
    files = ModelFiles.locate(model)
    if files.gguf:
        try:
            tokenizer = load_tokenizer(model)
        except InvalidInputError:  # no vocabulary, or of a kind that transformers does not know
            return False
        tokenizer.save_pretrained(directory)
    else:
        for pattern in _COPIED:
            for path in files.directory.glob(pattern):
                shutil.copyfile(path, directory / path.name)
    return any(directory.glob("tokenizer*"))
