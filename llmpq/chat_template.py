"""Chat templates: Jinja programs of a model's author, rendered as transformers does, without importing it.

They come with models from anywhere, so they run in Jinja's sandbox, on nothing but plain values.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

#: Names under which a message's reasoning is passed; templates read the first, or the second.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A template, compiled.

    Args:
        source: Its text.
        special_tokens: By role, as `bos_token`; templates write them.

    Raises:
        TemplateError: It is no Jinja template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(form),  # noqa: DTZ005 the host's time, as people say it
            "dict": _Dictionaries(),
            "namespace": _TemplateNamespace,
        }
        self._template = environment.from_string(source)
        self._special_tokens = special_tokens

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt to which the model answers next; raises whatever the template does."""
        if not messages:
            raise TemplateError("There are no messages.")
        plain = [
            _with_reasoning({key: value for key, value in entry.items() if value is not None}) for entry in messages
        ]
        return self._template.render(
            **self._special_tokens, messages=plain, tools=None, documents=None, add_generation_prompt=True
        )


class _GenerationBlocks(Extension):
    """`{% generation %}` marks what the model has written, which matters in training only."""

    tags = {"generation"}  # noqa: RUF012 as jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's content, in a scope of its own."""
        line_number = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line_number)


class _Dictionaries:
    """`dict` as templates need it: the class itself would lead out of the sandbox."""

    def __call__(self, *args: Any, **fields: Any) -> dict[Any, Any]:
        return dict(*args, **fields)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _TemplateNamespace(Namespace):
    """Jinja's, without attributes that begin with an underscore, which would lead out of the sandbox."""

    def __init__(*args: Any, **fields: Any) -> None:  # so that a field may be called `self`
        self, *given = args
        attributes = dict(*given, **fields)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"A chat template may not set '{name}' of a namespace.")


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning, if it has any, under the names that templates read."""
    reasoning = next((message[field] for field in _REASONING_FIELDS if field in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 as templates may call it
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 as above
) -> str:
    """Unlike Jinja's own filter, this does not escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
