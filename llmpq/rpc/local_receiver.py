"""The receiver's end of the data plane between processes of one host; `local_link` says why there is one.

Frames go from the socket to their sink in the callback that brings the bytes.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import structlog

from llmpq.address import split_address
from llmpq.errors import InternalError, MeshError
from llmpq.frame_chunks import FrameAssembler
from llmpq.rpc.frame_sink import FrameSink, MakeSink
from llmpq.rpc.local_records import Record, RecordReader, addresses_of, is_of_this_user, served_name, write_record
from llmpq.rpc.status import status_of

log = structlog.get_logger(__name__)


@asynccontextmanager
async def listening(address: str, make_sink: MakeSink) -> AsyncIterator[None]:
    """Serves the links of neighbours while the block runs; where a socket cannot be had, they go over gRPC.

    Args:
        address: host:port that this process listens at.
        make_sink: For the frames of each neighbour.
    """
    open_links: set[_Incoming] = set()
    host, port = split_address(address, "address")
    servers: list[asyncio.AbstractServer] = []
    for place in await addresses_of(host):
        try:
            make_link = partial(_Incoming, make_sink, open_links)
            servers.append(await asyncio.get_running_loop().create_unix_server(make_link, served_name(place, port)))
        except OSError as error:
            log.info("link.not_served", address=address, error=str(error))
    try:
        yield
    finally:
        for server in servers:
            server.close()
        for link in set(open_links):
            link.close()


class _Incoming(asyncio.Protocol):
    """A connection on which frames come.

    Args:
        make_sink: Makes the sink of its frames.
        open_links: It is in there while it is open.
    """

    def __init__(self, make_sink: MakeSink, open_links: "set[_Incoming]") -> None:
        self._sink: FrameSink = make_sink()
        self._open_links = open_links
        self._transport: asyncio.Transport
        self._reader = RecordReader()
        self._assembler = FrameAssembler()
        self._failure: asyncio.Future[MeshError] | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._has_ended = False

    def close(self) -> None:
        """Ends the connection."""
        self._has_ended = True
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol, as of the methods below."""
        self._transport = cast("asyncio.Transport", transport)
        self._open_links.add(self)
        if not is_of_this_user(transport):
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._has_ended = True
        self._open_links.discard(self)
        self._watch(None)
        if self._waiting is not None:
            self._waiting.cancel()

    def data_received(self, data: bytes) -> None:
        if self._has_ended:
            return
        self._reader.add(data)
        if self._waiting is None:
            self._take_records()

    def _take_records(self) -> None:
        """Takes what has come, as far as there is room for it."""
        try:
            while not self._has_ended:
                has_room = self._sink.has_room
                if has_room is not None and not has_room.is_set():
                    self._waiting = asyncio.ensure_future(self._go_on(has_room))
                    return
                record = self._next_record()
                if record is None:
                    return
                self._take(*record)
        except MeshError as error:
            log.info("link.refused", reason=error.reason, subject=error.subject)
            self._end_with(error)
        except Exception as error:  # the outermost layer of a link
            log.exception("link.failed")
            self._end_with(InternalError(f"The receiver of frames failed: {type(error).__name__}; see its log."))

    def _next_record(self) -> tuple[Record, bytes] | None:
        try:
            return self._reader.next()
        except ValueError:  # nobody of this mesh
            self.close()
            return None

    def _take(self, kind: Record, content: bytes) -> None:
        frame = self._assembler.take(content)
        if frame is not None:
            self._sink.take(frame)
            self._watch(self._sink.failure)
            if kind is Record.ASKING:  # an answer wakes a process that may compute
                write_record(self._transport, Record.TAKEN)

    async def _go_on(self, has_room: asyncio.Event) -> None:
        """Reads no more until there is room."""
        self._transport.pause_reading()
        await has_room.wait()
        self._waiting = None
        if not self._has_ended:
            self._transport.resume_reading()
            self._take_records()

    def _watch(self, failure: "asyncio.Future[MeshError] | None") -> None:
        """Ends the stream when that has a result, and for no other any more."""
        if failure is self._failure:
            return
        if self._failure is not None:
            self._failure.remove_done_callback(self._fail)
        if failure is not None:
            failure.add_done_callback(self._fail)
        self._failure = failure

    def _fail(self, failure: "asyncio.Future[MeshError]") -> None:
        self._end_with(failure.result())

    def _end_with(self, error: MeshError) -> None:
        """Says why. The neighbour ends the connection; in the middle of a write it would not read what is said."""
        if self._has_ended:
            return
        self._has_ended = True
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
            self._transport.resume_reading()
        write_record(self._transport, Record.ERROR, status_of(error).SerializeToString())
