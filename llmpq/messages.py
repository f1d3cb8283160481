"""Protobuf messages to frozen dataclasses and back, by field name.

Domain code works on dataclasses; only a service's `service.py` sees messages. A dataclass that mirrors a message has
the same field names, enums as `StrEnum` with the protobuf names as values, and `None` for unset optional fields.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, TypeVar, cast

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from pydantic import TypeAdapter, ValidationError

from llmpq.errors import InvalidInputError

T = TypeVar("T")
M = TypeVar("M", bound=Message)


def from_message(cls: type[T], message: Message) -> T:
    """Builds a `cls` from a message.

    Raises:
        InvalidInputError: A value is not one that `cls` admits; names the field.
    """
    fields = MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    return from_fields(cls, fields)


def from_fields(cls: type[T], fields: Mapping[str, Any]) -> T:
    """Builds a `cls` from plain values, such as parsed JSON; fields that `cls` lacks are ignored.

    Raises:
        InvalidInputError: A value is missing or not one that `cls` admits; names the field.
    """
    try:
        return cast("T", _adapter(cast("Any", cls)).validate_python(fields))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise InvalidInputError(f"{cls.__name__}.{path}: {first['msg']}", subject=path) from error


def to_message(value: Any, message_type: type[M]) -> M:
    """Builds a message of `message_type` from the dataclass that mirrors it."""
    return ParseDict(asdict(value), message_type())


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)
