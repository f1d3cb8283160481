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
from llmpq.rpc.data_plane import ForwardStream, add_forward_handler, forwarding_locally


class FrameReceiver:
    """A receiver of frames: checks, queues and acknowledges them, as a stage and the coordinator do."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()

    async def forward(self, incoming: AsyncIterator[Frame]) -> AsyncIterator[int]:
        """Handles a stream of frames."""
        async for frame in incoming:
            self.frames.put_nowait(frame)
            yield frame.frame_id


@asynccontextmanager
async def receiving(listen: str, receiver: FrameReceiver) -> AsyncIterator[str]:
    """Serves the receiver inside the block; gives the address."""
    add = partial(add_forward_handler, handler=receiver.forward)
    async with serving(listen, add, (), drain_s=0) as server, forwarding_locally(server.address, receiver.forward):
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
