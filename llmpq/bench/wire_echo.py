"""The other end of `llmpq bench wire`: sends every frame that it receives on to an address, as a stage does.

python -m llmpq.bench.wire_echo --listen HOST:PORT --to HOST:PORT [--by-grpc]
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import uvloop

from llmpq.frames import Frame
from llmpq.rpc import announce, serving, until_signal
from llmpq.rpc.data_plane import ForwardStream, add_forward_handler
from llmpq.rpc.frame_sink import FrameSink
from llmpq.rpc.local_receiver import listening


class FrameReceiver(FrameSink):
    """A receiver of frames: checks and queues them, as a stage and the coordinator do."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()

    def take(self, frame: Frame) -> None:
        """See FrameSink."""
        self.frames.put_nowait(frame)


@asynccontextmanager
async def receiving(listen: str, sink: FrameSink) -> AsyncIterator[str]:
    """Gives the frames of all streams to one sink, by both transports, inside the block; yields the address."""

    def make_sink() -> FrameSink:
        return sink

    add = partial(add_forward_handler, make_sink=make_sink)
    async with serving(listen, add, (), drain_s=0) as server, listening(server.address, make_sink):
        yield server.address


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--by-grpc", action="store_true")
    uvloop.run(_echo(parser.parse_args()))


async def _echo(flags: argparse.Namespace) -> None:
    receiver = FrameReceiver()
    async with (
        receiving(flags.listen, receiver) as address,
        ForwardStream(flags.to, by_grpc=flags.by_grpc) as back,
        asyncio.TaskGroup() as tasks,
    ):
        stopped = until_signal()
        watching = tasks.create_task(back.watch())
        sending = tasks.create_task(_send_back(receiver, back))
        announce(address)
        await stopped
        watching.cancel()
        sending.cancel()


async def _send_back(receiver: FrameReceiver, back: ForwardStream) -> None:
    while True:
        await back.send(await receiver.frames.get())


if __name__ == "__main__":
    main()
