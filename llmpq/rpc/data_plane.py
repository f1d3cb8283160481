"""The data plane's two ends: a Forward stream to the next process, and the handler that receives one.

gRPC sees raw bytes: frames become messages, and messages frames, in `llmpq.frame_chunks`.
"""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import grpc

from llmpq.errors import UnavailableError
from llmpq.frame_chunks import FrameAssembler, messages_of
from llmpq.frames import FORWARD_METHOD, SERVICE_NAME, Frame, encode_ack
from llmpq.rpc.channel import open_channel
from llmpq.rpc.status import rpc_errors

#: Receives frames in order and yields the number of each that is to be acknowledged.
ForwardHandler = Callable[[AsyncIterator[Frame]], AsyncIterator[int]]


def add_forward_handler(server: grpc.aio.Server, handler: ForwardHandler) -> None:
    """Serves ActivationService.Forward."""

    def forward(messages: AsyncIterator[bytes], _: object) -> AsyncIterator[int]:
        return handler(_received(messages))

    method: grpc.RpcMethodHandler[bytes, int] = grpc.stream_stream_rpc_method_handler(
        forward, response_serializer=encode_ack
    )
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

    async def send(self, frame: Frame) -> None:
        """Sends a frame, one at a time; waits while the neighbour's window is full. Raises as `watch`."""
        try:
            with rpc_errors(self._address):
                for raw in messages_of(frame):
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


async def _received(messages: AsyncIterator[bytes]) -> AsyncIterator[Frame]:
    assembler = FrameAssembler()
    async for raw in messages:
        frame = assembler.take(raw)
        if frame is not None:
            yield frame
    assembler.end()
