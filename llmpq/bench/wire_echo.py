"""The other end of `llmpq bench wire`: sends every frame that it receives on to an address, as a stage does.

python -m llmpq.bench.wire_echo --listen HOST:PORT --to HOST:PORT
"""

import argparse
import asyncio
from collections.abc import AsyncIterator

import uvloop

from llmpq.frames import Frame
from llmpq.rpc import announce, serving, until_signal
from llmpq.rpc.data_plane import ForwardStream, add_forward_handler


class FrameReceiver:
    """A receiver of frames: checks, queues and acknowledges them, as a stage and the coordinator do."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()

    async def forward(self, incoming: AsyncIterator[Frame]) -> AsyncIterator[int]:
        """Handles a stream of frames."""
        async for frame in incoming:
            self.frames.put_nowait(frame)
            yield frame.frame_id


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--to", required=True)
    uvloop.run(_echo(parser.parse_args()))


async def _echo(flags: argparse.Namespace) -> None:
    receiver = FrameReceiver()
    async with (
        serving(flags.listen, lambda server: add_forward_handler(server, receiver.forward), (), drain_s=0) as server,
        ForwardStream(flags.to) as back,
        asyncio.TaskGroup() as tasks,
    ):
        stopped = until_signal()
        watching = tasks.create_task(back.watch())
        sending = tasks.create_task(_send_back(receiver, back))
        announce(server.address)
        await stopped
        watching.cancel()
        sending.cancel()


async def _send_back(receiver: FrameReceiver, back: ForwardStream) -> None:
    while True:
        await back.send(await receiver.frames.get())


if __name__ == "__main__":
    main()
