"""What goes over a Unix socket between neighbours on one host, and how the sockets are named.

A record is one byte for its kind, four for its length (little-endian), and its content. Sockets are abstract and named
after the addresses of their servers, and like these belong to a network namespace.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

from llmpq.rpc.channel import MAX_MESSAGE_BYTES

Address = IPv4Address | IPv6Address

_HEADER = struct.Struct("<BI")
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
#: Stands for all addresses of a host.
_ANY = "*"


class Record(IntEnum):
    """What a record holds."""

    MESSAGE = 0  # of the data plane; from the sender of frames
    ASKING = 1  # the same; the sender wants to know when the frame that it completes was taken
    TAKEN = 2  # the answer to that; nothing more
    ERROR = 3  # a google.rpc.Status, with which the receiver ends the stream


_KINDS = frozenset(Record)


class RecordReader:
    """Makes records of what a socket brings."""

    def __init__(self) -> None:
        self._unread = bytearray()

    def add(self, data: bytes) -> None:
        """Takes the next bytes."""
        self._unread += data

    def next(self) -> tuple[Record, bytes] | None:
        """The next record, once all of it is there.

        Raises:
            ValueError: This is no record: nobody of this mesh has sent it.
        """
        if len(self._unread) < _HEADER.size:
            return None
        kind, size = _HEADER.unpack_from(self._unread)
        if kind not in _KINDS or size > MAX_MESSAGE_BYTES:
            raise ValueError(kind)
        end = _HEADER.size + size
        if len(self._unread) < end:
            return None
        content = bytes(memoryview(self._unread)[_HEADER.size : end])
        del self._unread[:end]
        return Record(kind), content


def write_record(transport: asyncio.WriteTransport, kind: Record, content: bytes = b"") -> None:
    """Sends a record, or queues it."""
    transport.writelines((_HEADER.pack(kind, len(content)), content))


def is_of_this_user(transport: asyncio.BaseTransport) -> bool:
    """Whether the other end belongs to the user of this process."""
    peer: socket.socket = transport.get_extra_info("socket")
    _, user, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.getuid())


async def addresses_of(host: str) -> list[Address]:
    """What a name stands for; nothing if nobody knows it."""
    with suppress(OSError, UnicodeError):
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_DGRAM)
        return list(dict.fromkeys(ip_address(place[0]) for *_, place in found))
    return []


def served_name(address: Address, port: int) -> str:
    """The name of the socket of a server that listens there."""
    return _name(_ANY if address.is_unspecified else str(address), port)


def possible_names(address: Address, port: int) -> Iterator[str]:
    """The names that the socket of a server may have that is reached there."""
    yield _name(str(address), port)
    yield _name(_ANY, port)


def _name(place: str, port: int) -> str:
    return f"\0llmpq/{place}:{port}"
