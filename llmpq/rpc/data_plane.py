"""The data plane's two ends: a Forward stream to the next process, and the handler that receives one.

What travels is raw bytes: frames become messages, and messages frames, in `llmpq.frame_chunks`.
"""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Never, Self

import grpc
from google.rpc import status_pb2

from llmpq.errors import UnavailableError
from llmpq.frame_chunks import FrameAssembler, messages_of
from llmpq.frames import FORWARD_METHOD, SERVICE_NAME, Frame, encode_ack
from llmpq.rpc.channel import open_channel
from llmpq.rpc.local_link import LocalLink, Record, connected, listening
from llmpq.rpc.status import error_of_status, rpc_errors

#: Receives frames in order and yields the number of each that is to be acknowledged.
ForwardHandler = Callable[[AsyncIterator[Frame]], AsyncIterator[int]]


def add_forward_handler(server: grpc.aio.Server, handler: ForwardHandler) -> None:
    """Serves ActivationService.Forward over gRPC."""

    def forward(messages: AsyncIterator[bytes], _: object) -> AsyncIterator[int]:
        return handler(_received(messages))

    method: grpc.RpcMethodHandler[bytes, int] = grpc.stream_stream_rpc_method_handler(
        forward, response_serializer=encode_ack
    )
    name = FORWARD_METHOD.rpartition("/")[2]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, {name: method}),))


def forwarding_locally(address: str, handler: ForwardHandler) -> AbstractAsyncContextManager[None]:
    """Serves the same to neighbours on this host while the block runs.

    Args:
        address: host:port that this process listens at.
        handler: Of the frames.
    """
    return listening(address, lambda messages: handler(_received(messages)))


class ForwardStream:
    """A long stream of frames to one neighbour; use it as an async context manager.

    To a neighbour on this host it goes over a local link, to any other over gRPC.

    Args:
        address: host:port of the neighbour.
        by_grpc: Go over gRPC in any case.
    """

    def __init__(self, address: str, *, by_grpc: bool = False) -> None:
        self._address = address
        self._by_grpc = by_grpc
        self._pipe: _GrpcPipe | _LocalPipe

    async def __aenter__(self) -> Self:
        """Opens the stream; over gRPC the connection itself is made with the first frame."""
        link = None if self._by_grpc else await connected(self._address)
        self._pipe = _LocalPipe(link) if link is not None else _GrpcPipe(self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends the stream and its connection."""
        await self._pipe.close()

    async def send(self, frame: Frame, *, is_asking: bool = False) -> None:
        """Sends a frame, one at a time; waits while the neighbour's window is full. Raises as `watch`.

        Args:
            frame: To send.
            is_asking: Its acknowledgement is waited for. Over gRPC all frames have one, over a local link those.
        """
        try:
            for raw in messages_of(frame):
                await self._pipe.write(raw, is_asking=is_asking)
        except (asyncio.InvalidStateError, ConnectionError) as error:  # it has ended already; `watch` knows why
            raise UnavailableError(f"{self._address} has ended the stream of frames.", subject=self._address) from error

    async def acknowledged(self) -> None:
        """Waits for the next acknowledgement. Raises as `watch`; use one of the two."""
        if not await self._pipe.acknowledged():
            raise UnavailableError(f"{self._address} ended the stream of frames.", subject=self._address)

    async def watch(self) -> Never:
        """Reads acknowledgements until the stream ends; never returns normally.

        Raises:
            MeshError: What the neighbour ended the stream with, or UnavailableError if it just went away.
        """
        while True:
            await self.acknowledged()


class _GrpcPipe:
    """Messages over gRPC."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = open_channel(address, is_data_plane=True)
        self._call: Any = self._channel.stream_stream(FORWARD_METHOD)()

    async def write(self, raw: bytes, *, is_asking: bool) -> None:  # noqa: ARG002 all are acknowledged
        with rpc_errors(self._address):
            await self._call.write(raw)

    async def acknowledged(self) -> bool:
        """Whether another acknowledgement came before the end."""
        with rpc_errors(self._address):
            return await self._call.read() is not grpc.aio.EOF

    async def close(self) -> None:
        self._call.cancel()
        await self._channel.close()


class _LocalPipe:
    """The same over a local link."""

    def __init__(self, link: LocalLink) -> None:
        self._link = link

    async def write(self, raw: bytes, *, is_asking: bool) -> None:
        await self._link.write(Record.ASKING if is_asking else Record.MESSAGE, raw)

    async def acknowledged(self) -> bool:
        record = await self._link.read()
        if record is not None and record[0] is Record.ERROR:
            raise error_of_status(status_pb2.Status.FromString(record[1]))
        return record is not None

    async def close(self) -> None:
        self._link.close()


async def _received(messages: AsyncIterator[bytes]) -> AsyncIterator[Frame]:
    assembler = FrameAssembler()
    async for raw in messages:
        frame = assembler.take(raw)
        if frame is not None:
            yield frame
    assembler.end()
