"""Text to token ids and back, as the model's own tokenizer has it."""

import json
import secrets
import threading
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from coordinator.openai_requests import LineError, ParsedLine
from coordinator.requests import Endpoint, Request
from llmpq.errors import InvalidInputError
from llmpq.frames import Sampling
from llmpq.model import ModelFiles, read_config
from llmpq.text_tokenizer import TextTokenizer, load_text_tokenizer

#: max_tokens of lines that set none, in batches that set none either; 16 is OpenAI's.
DEFAULT_MAX_TOKENS = {Endpoint.COMPLETIONS: 16, Endpoint.CHAT_COMPLETIONS: 256}
#: Least values that reach the stages: 0 means something else there, and what is smaller could become 0 in 32 bits.
MIN_TEMPERATURE = 1e-4
MIN_TOP_P = 1e-6

#: One thread at a time, so that nothing is loaded twice.
_LOADING = threading.Lock()


@dataclass(frozen=True)
class ModelTokenizer:
    """A model's tokenizer and the limits that its configuration sets.

    Attributes:
        tokenizer: Text to tokens and back.
        stop_ids: Tokens with which the model ends an answer.
        max_positions: Longest sequence, prompt and answer together.
        vocab_size: Rows of the embedding.
    """

    tokenizer: TextTokenizer
    stop_ids: frozenset[int]
    max_positions: int
    vocab_size: int

    @classmethod
    def load(cls, model: str) -> "ModelTokenizer":
        """Loads the tokenizer of a model directory or GGUF file; slow, so off the event loop.

        Raises:
            NotFoundError: No such model, or it has no tokenizer.
            InvalidInputError: A family that cannot be run, or a tokenizer that cannot be read.
        """
        with _LOADING:
            return _loaded(model, ModelFiles.locate(model).fingerprint)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special ones that the tokenizer adds; whoever asks checks the length."""
        return self.tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without special ones."""
        return self.tokenizer.decode(tokens)

    def request(self, line: ParsedLine, line_number: int, default_max_tokens: int) -> Request:
        """The request of a well-formed line. A seed is drawn where the line has none and needs one.

        Raises:
            LineError: No prompt tokens, unknown tokens, no chat template, or longer than the model's context.
        """
        prompt = self._prompt_tokens(line)
        return Request(
            line_number=line_number,
            custom_id=line.custom_id,
            endpoint=line.endpoint,
            prompt=prompt,
            max_tokens=self._token_limit(line, len(prompt), default_max_tokens),
            sampling=_sampling(line) if line.temperature else Sampling(),
            stop_strings=line.stop_strings,
            stop_ids=line.stop_ids,
            ignores_eos=line.ignores_eos,
        )

    def _prompt_tokens(self, line: ParsedLine) -> "array[int]":
        tokens: Sequence[int]
        if isinstance(line.prompt, str):
            tokens = self.encode(line.prompt)
        elif isinstance(line.prompt[0], Mapping):
            tokens = self._chat_tokens(line.prompt)
        else:
            tokens = line.prompt
        if not len(tokens):
            raise LineError("empty_prompt", "The prompt has no tokens.", "body.prompt")
        if max(tokens) >= self.vocab_size:
            problem = f"token {max(tokens)} is not in the vocabulary of {self.vocab_size}"
            raise LineError("invalid_value", f"body.prompt: {problem}.", "body.prompt")
        return array("i", tokens)

    def _chat_tokens(self, messages: Sequence[Any]) -> Sequence[int]:
        if not self.tokenizer.chat_template:
            message = "The model has no chat template: use /v1/completions, or give it a chat_template.jinja."
            raise LineError("no_chat_template", message, "body.messages")
        try:
            text = self.tokenizer.render_chat(messages)
        except Exception as error:  # a template is a program of the model's author: it raises what it likes
            message = f"body.messages: the model's chat template refuses them: {error}."
            raise LineError("invalid_value", message, "body.messages") from error
        return self.tokenizer.encode(text, adds_special_tokens=False)  # the template has them

    def _token_limit(self, line: ParsedLine, prompt_tokens: int, default_max_tokens: int) -> int:
        """max_tokens of the request; where nobody set one, the default as far as the context allows."""
        left = self.max_positions - prompt_tokens
        if left < (0 if line.max_tokens == 0 else 1):
            raise self._too_long(f"the prompt has {prompt_tokens} tokens")
        if line.max_tokens is None:
            return min(default_max_tokens or DEFAULT_MAX_TOKENS[line.endpoint], left)
        if line.max_tokens > left:
            raise self._too_long(f"{prompt_tokens} tokens of prompt and {line.max_tokens} of max_tokens")
        return line.max_tokens

    def _too_long(self, what: str) -> LineError:
        message = f"The model's context is {self.max_positions} tokens, but {what}."
        return LineError("context_length_exceeded", message, "body.max_tokens")


@lru_cache(maxsize=4)
def _loaded(model: str, fingerprint: str) -> ModelTokenizer:  # noqa: ARG001 keys the cache
    """Loads a tokenizer; for a GGUF file that takes seconds, and submission, batch and calibration all want it."""
    config = read_config(model)
    files = ModelFiles.locate(model)
    tokenizer = load_text_tokenizer(model)
    declared = _generation_eos(files)
    stop_ids = {*_ids(declared if declared is not None else config.eos_token_id), *_ids(tokenizer.eos_token_id)}
    return ModelTokenizer(tokenizer, frozenset(stop_ids), config.shape.max_positions, config.shape.vocab_size)


def _generation_eos(files: ModelFiles) -> int | list[int] | None:
    """eos_token_id of generation_config.json, if the model has one; a GGUF file has none."""
    path = files.directory / "generation_config.json"
    if files.gguf or not path.is_file():
        return None
    try:
        declared: int | list[int] | None = json.loads(path.read_bytes()).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        message = f"File '{path}' is damaged: {error}."
        raise InvalidInputError(message, reason="DAMAGED_FILE", subject=str(path)) from error
    return declared


def _sampling(line: ParsedLine) -> Sampling:
    """How to draw what is not greedy."""
    seed = secrets.randbits(64) if line.seed is None else line.seed % 2**64
    top_p = 0.0 if line.top_p == 1 else max(line.top_p, MIN_TOP_P)
    return Sampling(max(line.temperature, MIN_TEMPERATURE), top_p, line.top_k, seed)


def _ids(declared: int | Sequence[int] | None) -> Sequence[int]:
    if declared is None:
        return ()
    return (declared,) if isinstance(declared, int) else declared
