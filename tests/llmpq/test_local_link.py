"""Frames between processes of one host: the same over a local link as over gRPC."""

import asyncio
import socket
from contextlib import suppress

import pytest

from llmpq.bench.wire_echo import receiving
from llmpq.device import Phase
from llmpq.errors import InternalError, InvalidInputError, MeshError, PreconditionError, UnavailableError
from llmpq.frames import DataType, Frame
from llmpq.rpc import local_link, local_records
from llmpq.rpc.data_plane import ForwardStream
from tests.support.frame_sinks import CollectingSink

pytestmark = pytest.mark.parametrize("by_grpc", [False, True])


def frame(number: int, num_bytes: int) -> Frame:
    """A frame of one row."""
    payload = bytes([number]) * num_bytes
    return Frame("d", number, Phase.PREFILL, [0], [0], [1], DataType.INT32, (num_bytes // 4, 1), payload)


async def test_frames_arrive_in_order_and_are_acknowledged(*, by_grpc: bool) -> None:
    """Frames of all sizes come out as they went in, also those that are cut, and each of them is acknowledged."""
    sent = [frame(number, size) for number, size in enumerate((0, 4, 70_000, 9 * 2**20, 8))]
    sink = CollectingSink()
    async with receiving("127.0.0.1:0", sink) as address:
        link = await local_link.connected(address)
        assert link is not None
        link.close()
        async with ForwardStream(address, by_grpc=by_grpc) as stream:
            for each in sent:
                await stream.send(each, is_asking=True)
            for _ in sent:
                await stream.acknowledged()
    assert [(each.frame_id, bytes(each.payload)) for each in sink.frames] == [(f.frame_id, f.payload) for f in sent]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (InvalidInputError("No such slot.", subject="slots"), InvalidInputError),
        (PreconditionError("Load it again.", reason="WRONG_DEPLOYMENT", subject="d"), PreconditionError),
        (ZeroDivisionError("a secret"), InternalError),
        (ValueError("a secret"), InternalError),
    ],
)
async def test_errors_end_the_stream(*, by_grpc: bool, raised: Exception, expected: type[MeshError]) -> None:
    """What the receiver ends a stream with is what its sender is told; of a defect, only that there is one."""
    async with (
        receiving("127.0.0.1:0", CollectingSink(raised)) as address,
        ForwardStream(address, by_grpc=by_grpc) as stream,
    ):
        watching = asyncio.ensure_future(stream.watch())
        await stream.send(frame(0, 4))
        await stream.send(frame(1, 4))
        with suppress(UnavailableError):  # the stream ends meanwhile; why, `watch` says
            for number in range(2, 2 if by_grpc else 30):  # gRPC may lose a status that meets a write
                await stream.send(frame(number, 2**17))
        with pytest.raises(expected) as caught:
            await watching
    assert "secret" not in caught.value.message
    if isinstance(raised, MeshError):
        assert (caught.value.message, caught.value.reason, caught.value.subject) == (
            raised.message,
            raised.reason,
            raised.subject,
        )


async def test_a_receiver_that_goes_away_is_noticed(*, by_grpc: bool) -> None:
    """Both who waits for acknowledgements and who goes on sending learn that the neighbour is gone."""
    async with receiving("127.0.0.1:0", CollectingSink()) as address:
        stream = await ForwardStream(address, by_grpc=by_grpc).__aenter__()
        await stream.send(frame(0, 4), is_asking=True)
        await stream.acknowledged()
    with pytest.raises(UnavailableError):
        await stream.watch()
    with pytest.raises(UnavailableError):
        await stream.send(frame(1, 4))
    await stream.__aexit__()


async def test_a_receiver_that_takes_nothing_stops_the_sender(*, by_grpc: bool) -> None:
    """What is sent ahead of a busy receiver is bounded, and all of it arrives in the end."""
    sink, sent = CollectingSink(), []
    sink.room.clear()
    async with receiving("127.0.0.1:0", sink) as address, ForwardStream(address, by_grpc=by_grpc) as stream:

        async def send_all() -> None:
            for number in range(100):
                await stream.send(frame(number, 2**20), is_asking=True)
                sent.append(number)

        sending = asyncio.ensure_future(send_all())
        await asyncio.wait({sending}, timeout=1)
        assert len(sent) < 20
        sink.room.set()
        await sending
        for _ in range(100):
            await stream.acknowledged()
    assert [each.frame_id for each in sink.frames] == list(range(100))


async def test_there_are_no_links_to_others(monkeypatch: pytest.MonkeyPatch, *, by_grpc: bool) -> None:
    """Other hosts, ports at which nobody listens, and other users' processes have no local link, but gRPC."""
    async with receiving("127.0.0.1:0", CollectingSink()) as address:
        port = address.rpartition(":")[2]
        link = await local_link.connected(f"localhost:{port}")
        assert link is not None
        link.close()
        assert await local_link.connected(f"192.0.2.1:{port}") is None  # of no host (RFC 5737)
        assert await local_link.connected(f"no-such-host.invalid:{port}") is None
        assert await local_link.connected("127.0.0.1:1") is None
        assert await local_link.connected(f"127.0.0.2:{port}") is None  # another server may have it
        assert await local_link.connected(f"a..b:{port}") is None
        monkeypatch.setattr(local_records.os, "getuid", lambda: -1)
        assert await local_link.connected(address) is None
        async with ForwardStream(address, by_grpc=by_grpc) as stream:
            await stream.send(frame(0, 4), is_asking=True)
            await stream.acknowledged()


async def test_nonsense_ends_the_link(*, by_grpc: bool) -> None:
    """Whoever speaks something else is not listened to for long, and others are served on."""
    async with receiving("127.0.0.1:0", CollectingSink()) as address:
        port = int(address.rpartition(":")[2])
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.connect(f"\0llmpq/127.0.0.1:{port}")
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert await asyncio.to_thread(stranger.recv, 1) == b""
        async with ForwardStream(address, by_grpc=by_grpc) as stream:
            await stream.send(frame(0, 4), is_asking=True)
            await stream.acknowledged()


async def test_a_server_of_all_addresses_is_found_at_each(*, by_grpc: bool) -> None:
    """A process that listens at 0.0.0.0 has links at every address of its host."""
    async with receiving("0.0.0.0:0", CollectingSink()) as address:
        port = address.rpartition(":")[2]
        for host in ("127.0.0.1", "127.0.0.2"):
            link = await local_link.connected(f"{host}:{port}")
            assert link is not None
            link.close()
            async with ForwardStream(f"{host}:{port}", by_grpc=by_grpc) as stream:
                await stream.send(frame(0, 4), is_asking=True)
                await stream.acknowledged()
