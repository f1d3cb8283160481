"""The data plane's two ends: a Forward stream to the next process, and what receives one.

What travels is raw bytes: frames become messages, and messages frames, in `llmpq.frame_chunks`.
"""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Never, Self

import grpc
from google.rpc import status_pb2

from llmpq.errors import UnavailableError
from llmpq.frame_chunks import FrameAssembler, messages_of
from llmpq.frames import FORWARD_METHOD, SERVICE_NAME, Frame, encode_ack
from llmpq.rpc.channel import open_channel
from llmpq.rpc.frame_sink import FrameSink, MakeSink
from llmpq.rpc.local_link import LocalLink, connected
from llmpq.rpc.local_records import Record
from llmpq.rpc.status import error_of_status, rpc_errors


def add_forward_handler(server: grpc.aio.Server, make_sink: MakeSink) -> None:
    """Serves ActivationService.Forward over gRPC; `local_receiver.listening` serves it to neighbours on this host.

    Args:
        server: Not yet started.
        make_sink: For the frames of each stream.
    """

    def forward(messages: AsyncIterator[bytes], _: object) -> AsyncIterator[int]:
        return _received(messages, make_sink())

    method: grpc.RpcMethodHandler[bytes, int] = grpc.stream_stream_rpc_method_handler(
        forward, response_serializer=encode_ack
    )
    name = FORWARD_METHOD.rpartition("/")[2]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, {name: method}),))


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


async def _received(messages: AsyncIterator[bytes], sink: FrameSink) -> AsyncIterator[int]:
    """Gives the frames of a stream to its sink, and yields the number of each that was taken. Raises what ends it."""
    assembler = FrameAssembler()
    while (raw := await _next_or_failure(messages, sink)) is not None:
        frame = assembler.take(raw)
        if frame is not None:
            sink.take(frame)
            yield frame.frame_id
    assembler.end()


async def _next_or_failure(messages: AsyncIterator[bytes], sink: FrameSink) -> bytes | None:
    """The next message, or None at the end; raises the failure of the sink if that comes first."""
    following: asyncio.Future[bytes | None] = asyncio.ensure_future(_next(messages, sink.has_room))
    failure = sink.failure
    if failure is None:
        return await following
    try:
        await asyncio.wait((following, failure), return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            raise failure.result()
        return following.result()
    finally:
        following.cancel()


async def _next(messages: AsyncIterator[bytes], has_room: asyncio.Event | None) -> bytes | None:
    if has_room is not None:
        await has_room.wait()
    return await anext(messages, None)
