"""A free port that is kept for a server that has still to start."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from llmpq.address import split_address
from llmpq.errors import InvalidInputError


@contextmanager
def reserved_port(listen: str) -> Iterator[str]:
    """`listen` with a real port in place of 0, which nobody else is given while the block runs.

    So whoever is to call the server can be told its address before it is there. The port is bound, but not listened at:
    Linux then lets another socket be bound to it and listen, if both ask for it (SO_REUSEADDR), as those of gRPC do.

    Args:
        listen: host:port.

    Raises:
        InvalidInputError: It is no address, or not one of this machine's.
    """
    host, port = split_address(listen, "listen")
    if port:
        yield listen
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((host.strip("[]"), 0))
        except OSError as error:
            raise InvalidInputError(f"Cannot listen on '{listen}': {error.strerror}.", subject="listen") from error
        yield f"{host}:{holder.getsockname()[1]}"
