"""Addresses as people write them."""

from llmpq.errors import InvalidInputError

_MAX_PORT = 65_535


def split_address(address: str, field: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an IPv6 host is in brackets.

    Args:
        address: What was given.
        field: The field or flag that it was given for, for the error.

    Raises:
        InvalidInputError: It is no such address.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > _MAX_PORT:
        raise InvalidInputError(
            f"{field}: '{address[:200]}' is no address; expected HOST:PORT with a port up to {_MAX_PORT}.",
            subject=field,
        )
    return host, int(port)
