"""How a stage holds its lease."""

import asyncio

import grpc
import pytest

from llmpq.errors import UnavailableError
from llmpq.v1 import coordinator_service_pb2 as pb
from stage_server.registration import _heartbeat


class EndedCall:
    """A lease stream that the coordinator has ended, which the stage does not know yet."""

    def __init__(self) -> None:
        self._is_written = asyncio.Event()

    async def read(self) -> object:
        """The end, once somebody has tried to write."""
        await self._is_written.wait()
        return grpc.aio.EOF

    async def write(self, _: pb.RegisterStageRequest) -> None:
        """Refused, as gRPC does it."""
        self._is_written.set()
        raise asyncio.InvalidStateError("RPC already finished.")


async def test_a_stage_that_was_held_up_beyond_its_lease_opens_another() -> None:
    """Whoever writes a heartbeat into a stream that has ended learns its end, after which the lease is opened again."""
    with pytest.raises(UnavailableError, match="ended the lease"):
        await _heartbeat(EndedCall(), 0.001, "coordinator")
