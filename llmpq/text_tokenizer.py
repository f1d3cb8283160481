"""A model's tokenizer for those who need text as tokens and back: transformers' results, mostly without transformers.

Tokenizers that are nothing but a pipeline of the `tokenizers` library are kept as that library's JSON, with their chat
template. Others are transformers objects, each time.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer

from llmpq.chat_template import ChatTemplate
from llmpq.made_once import made_once
from llmpq.model import ModelFiles
from llmpq.tokenizer import load_tokenizer

#: What a class must not have changed for its tokenizers to be kept.
_METHODS = ("__call__", "_encode_plus", "decode", "_decode", "apply_chat_template", "get_chat_template")


class TextTokenizer(Protocol):
    """Text to tokens and back.

    Attributes:
        eos_token_id: The token that ends a text; None if there is none.
        chat_template: None if there is none.
    """

    eos_token_id: int | None
    chat_template: str | None

    def encode(self, text: str, *, adds_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the special ones around it unless it has them."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without special ones."""

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt to which the model answers next, with special tokens; raises whatever the template does."""


def load_text_tokenizer(model: str) -> TextTokenizer:
    """Loads a model's tokenizer: at once, if this host has loaded it before. Raises as `load_tokenizer`."""
    fingerprint = ModelFiles.locate(model).fingerprint
    kept = made_once("tokenizers", fingerprint, lambda: _to_keep(load_tokenizer(model)))
    return _Kept(kept) if kept else _OfTransformers(load_tokenizer(model))


class _Kept:
    """A tokenizer from what `_to_keep` made."""

    def __init__(self, kept: Mapping[str, Any]) -> None:
        self.eos_token_id: int | None = kept["eos_token_id"]
        self.chat_template: str | None = kept["chat_template"]
        self._tokenizer = Tokenizer.from_str(kept["pipeline"])
        self._special_tokens: Mapping[str, str] = kept["special_tokens"]
        self._template: ChatTemplate | None = None

    def encode(self, text: str, *, adds_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=adds_special_tokens).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if self._template is None:  # one that cannot be compiled must not keep plain prompts from being served
            self._template = ChatTemplate(self.chat_template or "", self._special_tokens)
        return self._template.render(messages)


class _OfTransformers:
    """A tokenizer that does things of its own."""

    def __init__(self, tokenizer: Any) -> None:
        self.eos_token_id: int | None = tokenizer.eos_token_id
        self.chat_template: str | None = tokenizer.chat_template
        self._tokenizer = tokenizer

    def encode(self, text: str, *, adds_special_tokens: bool = True) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=adds_special_tokens, verbose=False)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))


def _to_keep(tokenizer: Any) -> dict[str, Any]:
    """A transformers tokenizer as what JSON can hold; nothing of one that has more to it than a pipeline."""
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 takes seconds, and most processes never need it

    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    if (
        not isinstance(tokenizer, PreTrainedTokenizerFast)
        or any(getattr(type(tokenizer), name) is not getattr(PreTrainedTokenizerFast, name) for name in _METHODS)
        or tokenizer.split_special_tokens
        or _cleans_up_spaces(tokenizer)
        or (template is None and tokenizer.chat_template)
    ):
        return {}
    pipeline = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    pipeline.no_truncation()
    pipeline.no_padding()
    return {
        "pipeline": pipeline.to_str(),
        "special_tokens": tokenizer.special_tokens_map,
        "eos_token_id": tokenizer.eos_token_id,
        "chat_template": template or None,
    }


def _cleans_up_spaces(tokenizer: Any) -> bool:
    """Whether transformers changes decoded text; of BPE it does so only where it is forced to."""
    is_forced = tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    is_bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    return bool(tokenizer.clean_up_tokenization_spaces) and (is_forced or not is_bpe)
