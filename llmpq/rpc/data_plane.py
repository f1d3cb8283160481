"""The data plane's two ends: a Forward stream to the next process, and the handler that receives one.

Messages pass as raw bytes; `llmpq.frames` encodes and decodes them.
"""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import grpc

from llmpq.errors import UnavailableError
from llmpq.frames import FORWARD_METHOD, SERVICE_NAME
from llmpq.rpc.channel import open_channel
from llmpq.rpc.status import rpc_errors

#: Receives raw frames in order and yields an acknowledgement for each.
ForwardHandler = Callable[[AsyncIterator[bytes], "grpc.aio.ServicerContext[bytes, bytes]"], AsyncIterator[bytes]]


def add_forward_handler(server: grpc.aio.Server, handler: ForwardHandler) -> None:
    """Serves ActivationService.Forward without parsing messages."""
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(handler)
    name = FORWARD_METHOD.rpartition("/")[2]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, {name: method}),))


class ForwardStream:
    """A long stream of frames to one neighbour; use it as an async context manager.

    Args:
        address: host:port of the neighbour.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = open_channel(address, is_data_plane=True)
        self._call: Any = None

    async def __aenter__(self) -> Self:
        """Opens the stream; the connection itself is made with the first frame."""
        self._call = self._channel.stream_stream(FORWARD_METHOD)()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends the stream and its connection."""
        self._call.cancel()
        await self._channel.close()

    async def send(self, raw: bytes) -> None:
        """Sends a frame; waits while the neighbour's window is full. Raises as `watch`."""
        try:
            with rpc_errors(self._address):
                await self._call.write(raw)
        except asyncio.InvalidStateError as error:  # the stream has ended already; `watch` knows why
            raise UnavailableError(f"{self._address} has ended the stream of frames.", subject=self._address) from error

    async def acknowledged(self) -> None:
        """Waits for the next acknowledgement. Raises as `watch`; use one of the two."""
        with rpc_errors(self._address):
            if await self._call.read() is grpc.aio.EOF:
                raise self._ended()

    async def watch(self) -> None:
        """Reads acknowledgements until the stream ends; never returns normally.

        Raises:
            MeshError: What the neighbour ended the stream with, or UnavailableError if it just went away.
        """
        with rpc_errors(self._address):
            while await self._call.read() is not grpc.aio.EOF:
                pass
        raise self._ended()

    def _ended(self) -> UnavailableError:
        return UnavailableError(f"{self._address} ended the stream of frames.", subject=self._address)
