"""Lines of OpenAI's batch input format.

A parameter that would change the answer and that the mesh cannot honour is an error of its line, never ignored.
"""

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coordinator.requests import Endpoint


class LineError(Exception):
    """Expected error: one line of a batch cannot be run; its author must correct it.

    Args:
        code: Identifier as OpenAI's batch errors have them.
        message: What is wrong and what would be right.
        param: The field concerned, as a path.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


Prompt = str | tuple[int, ...] | tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class ParsedLine:
    """A line that is well-formed; its prompt is not yet tokens.

    Attributes:
        custom_id: The client's name for it.
        endpoint: What it asks for.
        model: The model that it names; empty if none.
        prompt: Text, token ids, or chat messages with `role` and `content`.
        max_tokens: Tokens to generate; 0 to score the prompt; None if the line does not say.
        temperature: 0 is greedy.
        top_p: Cumulative probability to draw from, above 0 and at most 1.
        top_k: Tokens to draw from; 0 is all.
        seed: Seed of the draw; None if the line does not say.
        stop_strings: Texts that end the answer.
        stop_ids: Token ids that end the answer.
        ignores_eos: Whether the model's end tokens are ordinary ones.
    """

    custom_id: str
    endpoint: Endpoint
    model: str
    prompt: Prompt
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop_strings: tuple[str, ...]
    stop_ids: tuple[int, ...]
    ignores_eos: bool


def parse_line(text: str) -> ParsedLine:
    """Checks one line.

    Raises:
        LineError: Names the field.
    """
    line = _validated(_Line, _parse_object(text))
    body_type = _ChatBody if line.url is Endpoint.CHAT_COMPLETIONS else _CompletionBody
    _refuse_unsupported(line.body, body_type)
    body = _validated(body_type, {name: value for name, value in line.body.items() if value is not None}, "body.")
    return ParsedLine(
        custom_id=line.custom_id,
        endpoint=line.url,
        model=body.model or "",
        prompt=body.prompt_or_messages(),
        max_tokens=body.token_limit(),
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),
        seed=body.seed,
        stop_strings=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop),
        stop_ids=tuple(body.stop_token_ids),
        ignores_eos=body.ignore_eos,
    )


def custom_id_of(text: str) -> str:
    """The custom_id of a line, as far as it can be read; empty otherwise."""
    try:
        return _text_in(_parse_object(text), "custom_id")
    except LineError:
        return ""


def model_of(text: str) -> str:
    """The model that a line names, as far as it can be read; empty otherwise."""
    try:
        body = _parse_object(text).get("body")
    except LineError:
        return ""
    return _text_in(body, "model") if isinstance(body, dict) else ""


def first_model_of(texts: Iterable[str]) -> str:
    """The first model that one of the lines names; empty if none does."""
    return next(filter(None, map(model_of, texts)), "")


#: Values at which a parameter that we do not have changes nothing.
_NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none",),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
}

#: Parameters that never change an answer.
_WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "user",
    },
)

_Model = TypeVar("_Model", bound=BaseModel)
_NonEmpty = Annotated[str, Field(min_length=1)]
_TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class _Line(BaseModel):
    custom_id: Annotated[str, Field(strict=True, min_length=1)]
    method: Literal["POST"]
    url: Endpoint
    body: dict[str, Any]


class _Body(BaseModel):
    """What both endpoints share, with OpenAI's defaults."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: _NonEmpty | list[_NonEmpty] = []
    stop_token_ids: list[_TokenId] = []
    ignore_eos: bool = False

    @abstractmethod
    def prompt_or_messages(self) -> Prompt: ...

    @abstractmethod
    def token_limit(self) -> int | None: ...


class _ChatBody(_Body):
    messages: Annotated[list["_Message"], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None

    def prompt_or_messages(self) -> Prompt:
        return tuple(message.for_template() for message in self.messages)

    def token_limit(self) -> int | None:
        if self.max_tokens == 0:
            raise LineError("invalid_value", "body.max_tokens: must be at least 1.", "body.max_tokens")
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class _CompletionBody(_Body):
    prompt: str | list[_TokenId]
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None

    def prompt_or_messages(self) -> Prompt:
        if not self.prompt:
            raise LineError("empty_prompt", "body.prompt: the prompt is empty.", "body.prompt")
        return self.prompt if isinstance(self.prompt, str) else tuple(self.prompt)

    def token_limit(self) -> int | None:
        """Scoring is the one use of echo, logprobs and max_tokens 0; they come together or not at all."""
        asked = {"logprobs": self.logprobs is not None, "echo": self.echo, "max_tokens": self.max_tokens == 0}
        if any(asked.values()) and not all(asked.values()):
            param = next(f"body.{name}" for name, is_asked in asked.items() if is_asked)
            message = f"{param}: `echo`, `logprobs` and `max_tokens` 0 are supported together only, to score a prompt."
            raise LineError("unsupported_parameter", message, param)
        return self.max_tokens


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list["_TextPart"]
    name: str | None = None

    def for_template(self) -> Mapping[str, Any]:
        is_text = isinstance(self.content, str)
        content = self.content if is_text else "".join(part.text for part in self.content)  # type: ignore[union-attr]
        return {"role": self.role, "content": content} | ({"name": self.name} if self.name else {})


class _TextPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


def _parse_object(text: str) -> dict[str, Any]:
    """The object in a line. JSON can escape what no UTF-8 text can hold, and what is stored and sent is UTF-8."""
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        message = f"The line has text that is not Unicode: {error.object[error.start]!a} is half of a surrogate pair."
        raise LineError("invalid_json_line", message) from error
    except (ValueError, RecursionError) as error:
        raise LineError("invalid_json_line", f"The line is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise LineError("invalid_json_line", "The line is not a JSON object.")
    return value


def _text_in(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _refuse_unsupported(body: Mapping[str, Any], body_type: type[_Body]) -> None:
    for name, value in body.items():
        is_neutral = value is None or value in _NEUTRAL_VALUES.get(name, ())
        if name in body_type.model_fields or name in _WITHOUT_EFFECT or is_neutral:
            continue
        neutral = _NEUTRAL_VALUES.get(name)
        hint = f"leave it out or set it to {json.dumps(neutral[0])}" if neutral else "leave it out"
        raise LineError("unsupported_parameter", f"body.{name} is not supported: {hint}.", f"body.{name}")


def _validated(model: type[_Model], fields: Mapping[str, Any], prefix: str = "") -> _Model:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _line_error(error, prefix) from error


def _line_error(error: ValidationError, prefix: str) -> LineError:
    # Of the alternatives that a value may be, the one that was followed furthest is the one that was meant.
    found = max(error.errors(include_url=False, include_input=False), key=lambda found: len(found["loc"]))
    # Alternatives are in the path by their type; only names and indices belong to the line.
    path = [str(part) for part in found["loc"] if isinstance(part, int) or (part.isidentifier() and part != "str")]
    param = prefix + ".".join(path)
    code = _CODES.get((found["type"], param)) or _CODES_OF_TYPE.get(found["type"], "invalid_value")
    return LineError(code, f"{param}: {found['msg']}.", param)


_CODES = {
    ("enum", "url"): "invalid_url",
    ("literal_error", "method"): "invalid_method",
    ("missing", "custom_id"): "missing_custom_id",
    ("too_short", "body.messages"): "empty_prompt",
}
_CODES_OF_TYPE = {"missing": "missing_required_parameter", "extra_forbidden": "unsupported_parameter"}
