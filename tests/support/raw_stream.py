"""A stream of messages as they are: a neighbour of the data plane that sends what it likes."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import grpc

from llmpq.frames import FORWARD_METHOD
from llmpq.rpc import open_channel, rpc_errors
from llmpq.v1 import activation_service_pb2 as pb


async def forward_messages(address: str, messages: Iterable[bytes]) -> list[int]:
    """Sends messages to a process and ends the stream; returns the frames acknowledged, raises what it ended with."""
    acknowledged = []
    async with open_channel(address, is_data_plane=True) as channel:
        call = channel.stream_stream(FORWARD_METHOD)()
        with rpc_errors(address):
            with suppress(asyncio.InvalidStateError):  # refused before all was sent
                for raw in messages:
                    await call.write(raw)
                await call.done_writing()
            while (answer := await call.read()) is not grpc.aio.EOF:
                acknowledged.append(pb.ForwardResponse.FromString(answer).frame_id)
    return acknowledged
