"""The sender's end of the data plane between processes of one host: the same messages as over gRPC, on a Unix socket.

A frame of a decode step is a few kilobytes, and takes a few milliseconds to compute. On its way gRPC wakes threads
of its own, on the core that computes; a socket that the event loop reads itself needs none of them. Only processes of
the same user talk to each other like this (`local_receiver` has the other end); for everybody else there is gRPC.
"""

import asyncio
import socket
from collections import deque
from contextlib import suppress
from ipaddress import ip_address
from typing import cast

from llmpq.address import split_address
from llmpq.rpc.local_records import (
    Address,
    Record,
    RecordReader,
    addresses_of,
    is_of_this_user,
    possible_names,
    write_record,
)


class LocalLink(asyncio.Protocol):
    """A connection to a neighbour that takes frames."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reader = RecordReader()
        self._records: deque[tuple[Record, bytes]] = deque()
        self._is_closed = False
        self._changed = asyncio.Event()
        self._can_write = asyncio.Event()
        self._can_write.set()

    async def write(self, kind: Record, content: bytes) -> None:
        """Sends a record; waits while the other end does not read.

        Raises:
            ConnectionError: The connection has ended.
        """
        if self._is_closed or self._transport is None:
            raise ConnectionResetError
        write_record(self._transport, kind, content)
        await self._can_write.wait()

    async def read(self) -> tuple[Record, bytes] | None:
        """The next record; None at the end of the connection."""
        while not self._records:
            if self._is_closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._records.popleft()

    def close(self) -> None:
        """Ends the connection once everything is sent."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol, as of the methods below."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._reader.add(data)
        try:
            while (record := self._reader.next()) is not None:
                self._records.append(record)
        except ValueError:
            self.close()
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, D102
        self._is_closed = True
        self._changed.set()
        self._can_write.set()

    def pause_writing(self) -> None:  # noqa: D102
        self._can_write.clear()

    def resume_writing(self) -> None:  # noqa: D102
        self._can_write.set()


async def connected(address: str) -> LocalLink | None:
    """A link to the server at `host:port`, if that is one of this host and of this user; None otherwise."""
    host, port = split_address(address, "address")
    for place in await addresses_of(host):
        if _is_of_this_host(place):
            for name in possible_names(place, port):
                with suppress(OSError):
                    return await _connected_to(name)
    return None


async def _connected_to(name: str) -> LocalLink:
    """Raises OSError if nobody listens there, or another user does."""
    transport, link = await asyncio.get_running_loop().create_unix_connection(LocalLink, sock=_connected_socket(name))
    if not is_of_this_user(transport):
        link.close()
        raise PermissionError(name)
    return link


def _connected_socket(name: str) -> socket.socket:
    """Connects, at once or not at all; uvloop itself connects to sockets with a path only."""
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        connecting.connect(name)
    except OSError:
        connecting.close()
        raise
    return connecting


def _is_of_this_host(place: Address) -> bool:
    """Whether what is sent there stays here: only then is it also the address that it is sent from."""
    if place.is_loopback or place.is_unspecified:
        return True
    family = socket.AF_INET6 if place.version == 6 else socket.AF_INET  # noqa: PLR2004 of IP
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(place), 9))  # nothing is sent
        return ip_address(probe.getsockname()[0]) == place
    return False
