"""The data plane between processes of one host: the same messages as over gRPC, on a Unix socket.

A frame of a decode step is a few kilobytes, and takes a few milliseconds to compute. On its way gRPC wakes threads
of its own, on the core that computes; a socket that the event loop reads itself needs none of them.

Every server of the data plane also listens on abstract sockets that are named after its addresses, and like these
belong to a network namespace. A record is one byte for its kind, four for its length (little-endian), and its content.
Only processes of the same user talk to each other like this; for everybody else there is gRPC.
"""

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import cast

import structlog

from llmpq.address import split_address
from llmpq.errors import InternalError, MeshError
from llmpq.rpc.channel import MAX_MESSAGE_BYTES
from llmpq.rpc.status import status_of

log = structlog.get_logger(__name__)

_Address = IPv4Address | IPv6Address

_HEADER = struct.Struct("<BI")
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
#: A receiver that has so many bytes of messages waiting reads no more.
_MAX_WAITING_BYTES = 2**20
#: Stands for all addresses of a host.
_ANY = "*"


class Record(IntEnum):
    """What a record holds."""

    MESSAGE = 0  # of the data plane; from the sender of frames
    ASKING = 1  # the same; the sender wants to know when the frame that it completes was taken
    TAKEN = 2  # the answer to that; nothing more
    ERROR = 3  # a google.rpc.Status, with which the receiver ends the stream


_KINDS = frozenset(Record)


class LocalLink(asyncio.Protocol):
    """One end of a connection: records in, records out.

    Args:
        on_open: Called with the link once it is connected, if anything is.
    """

    def __init__(self, on_open: Callable[["LocalLink"], object] | None = None) -> None:
        self._on_open = on_open
        self._transport: asyncio.Transport | None = None
        self._unread = bytearray()
        self._records: deque[tuple[Record, bytes]] = deque()
        self._waiting_bytes = 0
        self._is_closed = False
        self._changed = asyncio.Event()
        self._can_write = asyncio.Event()
        self._can_write.set()

    async def write(self, kind: Record, content: bytes = b"") -> None:
        """Sends a record; waits while the other end does not read.

        Raises:
            ConnectionError: The connection has ended.
        """
        if self._is_closed or self._transport is None:
            raise ConnectionResetError
        self._transport.writelines((_HEADER.pack(kind, len(content)), content))
        await self._can_write.wait()

    async def read(self) -> tuple[Record, bytes] | None:
        """The next record; None at the end of the connection."""
        while not self._records:
            if self._is_closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        kind, content = self._records.popleft()
        self._waiting_bytes -= len(content)
        if self._transport is not None and self._waiting_bytes <= _MAX_WAITING_BYTES:
            self._transport.resume_reading()
        return kind, content

    def close(self) -> None:
        """Ends the connection once everything is sent."""
        if self._transport is not None:
            self._transport.close()

    def is_of_this_user(self) -> bool:
        """Whether the other end belongs to the user of this process."""
        assert self._transport is not None  # noqa: S101 it is connected
        peer: socket.socket = self._transport.get_extra_info("socket")
        _, user, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return bool(user == os.getuid())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol, as of the methods below."""
        self._transport = cast("asyncio.Transport", transport)
        if self._on_open is not None:
            self._on_open(self)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._unread += data
        begin = 0
        while len(self._unread) - begin >= _HEADER.size:
            kind, size = _HEADER.unpack_from(self._unread, begin)
            if kind not in _KINDS or size > MAX_MESSAGE_BYTES:  # nobody of this mesh
                self.close()
                return
            end = begin + _HEADER.size + size
            if len(self._unread) < end:
                break
            self._records.append((Record(kind), bytes(memoryview(self._unread)[begin + _HEADER.size : end])))
            self._waiting_bytes += size
            begin = end
        del self._unread[:begin]
        if self._waiting_bytes > _MAX_WAITING_BYTES and self._transport is not None:
            self._transport.pause_reading()
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, D102
        self._is_closed = True
        self._changed.set()
        self._can_write.set()

    def pause_writing(self) -> None:  # noqa: D102
        self._can_write.clear()

    def resume_writing(self) -> None:  # noqa: D102
        self._can_write.set()


#: Takes the messages of one sender, and yields whenever they have made a frame that was taken.
MessageHandler = Callable[[AsyncIterator[bytes]], AsyncIterator[object]]


async def connected(address: str) -> LocalLink | None:
    """A link to the server at `host:port`, if that is one of this host and of this user; None otherwise."""
    host, port = split_address(address, "address")
    for place in await _addresses(host):
        if _is_of_this_host(place):
            for name in (_socket_name(place, port), _socket_name(_ANY, port)):
                with suppress(OSError):
                    return await _connected_to(name)
    return None


@asynccontextmanager
async def listening(address: str, handler: MessageHandler) -> AsyncIterator[None]:
    """Serves the links of neighbours while the block runs; where a socket cannot be had, they go over gRPC.

    Args:
        address: host:port that this process listens at.
        handler: Of each neighbour's messages.
    """
    serving: set[asyncio.Task[None]] = set()

    def serve(link: LocalLink) -> None:
        task = asyncio.ensure_future(_serve(link, handler))
        serving.add(task)
        task.add_done_callback(serving.discard)

    host, port = split_address(address, "address")
    servers: list[asyncio.AbstractServer] = []
    for place in await _addresses(host):
        name = _socket_name(_ANY if place.is_unspecified else place, port)
        try:
            servers.append(await asyncio.get_running_loop().create_unix_server(lambda: LocalLink(serve), name))
        except OSError as error:
            log.info("link.not_served", address=address, error=str(error))
    try:
        yield
    finally:
        for server in servers:
            server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def _serve(link: LocalLink, handler: MessageHandler) -> None:
    """Until the neighbour ends the stream, or an error does."""
    try:
        if link.is_of_this_user():
            messages = _Messages(link)
            async for _ in handler(messages):
                if messages.is_asking:
                    await link.write(Record.TAKEN)
    except ConnectionError:
        pass
    except MeshError as error:
        log.info("link.refused", reason=error.reason, subject=error.subject)
        await _end_with(link, error)
    except Exception as error:  # the outermost layer of a link
        log.exception("link.failed")
        await _end_with(link, InternalError(f"The receiver of frames failed: {type(error).__name__}; see its log."))
    finally:
        link.close()


async def _end_with(link: LocalLink, error: MeshError) -> None:
    """Says why, and waits until the neighbour ends the connection: in the middle of a write it would not read it."""
    with suppress(ConnectionError):
        await link.write(Record.ERROR, status_of(error).SerializeToString())
    while await link.read() is not None:
        pass


class _Messages:
    """The messages of a link, one after another.

    Attributes:
        is_asking: Whether the sender of the last one wants an answer. An answer wakes a process that may compute.
    """

    def __init__(self, link: LocalLink) -> None:
        self._link = link
        self.is_asking = False

    def __aiter__(self) -> "_Messages":
        return self

    async def __anext__(self) -> bytes:
        record = await self._link.read()
        if record is None:
            raise StopAsyncIteration
        self.is_asking = record[0] is Record.ASKING
        return record[1]


async def _connected_to(name: str) -> LocalLink:
    """Raises OSError if nobody listens there, or another user does."""
    link: LocalLink
    _, link = await asyncio.get_running_loop().create_unix_connection(LocalLink, sock=_connected_socket(name))
    if not link.is_of_this_user():
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


async def _addresses(host: str) -> list[_Address]:
    """What a name stands for; nothing if nobody knows it."""
    with suppress(OSError, UnicodeError):
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_DGRAM)
        return list(dict.fromkeys(ip_address(place[0]) for *_, place in found))
    return []


def _is_of_this_host(place: _Address) -> bool:
    """Whether what is sent there stays here: only then is it also the address that it is sent from."""
    if place.is_loopback or place.is_unspecified:
        return True
    family = socket.AF_INET6 if place.version == 6 else socket.AF_INET  # noqa: PLR2004 of IP
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(place), 9))  # nothing is sent
        return ip_address(probe.getsockname()[0]) == place
    return False


def _socket_name(place: _Address | str, port: int) -> str:
    return f"\0llmpq/{place}:{port}"
