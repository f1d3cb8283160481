"""What every process owes: health, reflection, and a graceful end."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from llmpq.errors import InvalidInputError, UnavailableError
from llmpq.rpc import open_channel, rpc_errors, serving
from llmpq.v1 import stage_service_pb2 as pb
from llmpq.v1.stage_service_pb2_grpc import StageServiceServicer, StageServiceStub, add_StageServiceServicer_to_server

STAGE_SERVICE = "llmpq.v1.StageService"


class _SlowStage(StageServiceServicer):
    """Answers GetStage once it is told to, and streams profiles for ever."""

    def __init__(self) -> None:
        self.is_asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def GetStage(self, _request: object, _context: object) -> pb.GetStageResponse:  # noqa: N802
        self.is_asked.set()
        await self.may_answer.wait()
        return pb.GetStageResponse(frames=7)

    async def ProfileLayers(  # noqa: N802
        self, _request: object, _context: object
    ) -> AsyncIterator[pb.ProfileLayersResponse]:
        while True:
            yield pb.ProfileLayersResponse(points_done=1)
            await asyncio.sleep(0.01)


def add(servicer: StageServiceServicer) -> Callable[[grpc.aio.Server], None]:
    """How `serving` is told of a servicer."""
    return lambda server: add_StageServiceServicer_to_server(servicer, server)


async def test_health_is_serving_for_the_process_and_for_each_service() -> None:
    """A probe may ask for the empty name or for a service; unknown names are NOT_FOUND."""
    async with (
        serving("127.0.0.1:0", add(_SlowStage()), [STAGE_SERVICE]) as server,
        open_channel(server.address) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", STAGE_SERVICE):
            response = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
        assert missing.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services_and_describes_them() -> None:
    """A tool such as grpcurl needs no .proto file: the services are listed, and their file can be asked for."""
    async with (
        serving("127.0.0.1:0", add(_SlowStage()), [STAGE_SERVICE]) as server,
        open_channel(server.address) as channel,
    ):
        questions = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=STAGE_SERVICE),
        ]
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(questions))
        listed, described = [answer async for answer in call]
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {STAGE_SERVICE, "grpc.health.v1.Health"}
    assert any(b"LoadStage" in raw for raw in described.file_descriptor_response.file_descriptor_proto)


async def test_draining_lets_a_running_call_finish() -> None:
    """On leaving the block, health says NOT_SERVING at once and a call under way still gets its answer."""
    servicer = _SlowStage()
    leave = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with serving("127.0.0.1:0", add(servicer), [STAGE_SERVICE]) as server:
            address.set_result(server.address)
            await leave.wait()

    serving_task = asyncio.create_task(serve())
    async with open_channel(await address) as channel:
        statuses = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=STAGE_SERVICE))
        assert (await statuses.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = StageServiceStub(channel).GetStage(pb.GetStageRequest(), timeout=30)
        await servicer.is_asked.wait()
        leave.set()
        assert (await statuses.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        statuses.cancel()
        servicer.may_answer.set()
        assert (await call).frames == 7
    await serving_task


async def test_a_stream_that_outlives_the_drain_ends_as_unavailable() -> None:
    """Whoever follows a stream of a process that stops learns that it may try again."""
    leave = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with serving("127.0.0.1:0", add(_SlowStage()), [STAGE_SERVICE], drain_s=0.05) as server:
            address.set_result(server.address)
            await leave.wait()

    serving_task = asyncio.create_task(serve())
    async with open_channel(await address) as channel:
        messages = aiter(StageServiceStub(channel).ProfileLayers(pb.ProfileLayersRequest()))
        await anext(messages)
        leave.set()
        with pytest.raises(UnavailableError), rpc_errors():
            _ = [message async for message in messages]
    await serving_task


async def test_a_port_that_is_taken_is_refused() -> None:
    """A second process on the same port fails at once, instead of taking half of the connections."""
    async with serving("127.0.0.1:0", add(_SlowStage()), []) as first:
        with pytest.raises(InvalidInputError, match="the port is taken"):
            async with serving(first.address, add(_SlowStage()), []):
                pass


@pytest.mark.parametrize("listen", ["", "50051", "localhost", "localhost:", "localhost:http"])
async def test_an_address_that_is_none_is_refused(listen: str) -> None:
    """The error quotes it and says what was expected."""
    with pytest.raises(InvalidInputError, match="expected HOST:PORT"):
        async with serving(listen, add(_SlowStage()), []):
            pass


_PROCESS = """
import asyncio
from llmpq.rpc import announce, serving, until_signal

async def main():
    async with serving("127.0.0.1:0", lambda server: None, []) as server:
        stopped = until_signal()
        announce(server.address)
        await stopped
    print("drained", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_a_process(number: signal.Signals) -> None:
    """A process announces where it listens, and ends with status 0 after SIGTERM or Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _PROCESS,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    announced = (await process.stdout.readline()).decode()
    while not announced.startswith("listening on"):  # structlog's default prints to standard output, too
        announced = (await process.stdout.readline()).decode()
    assert announced.startswith("listening on 127.0.0.1:")
    process.send_signal(number)
    output, _ = await process.communicate()
    assert output.decode().endswith("drained\n")
    assert process.returncode == 0


async def test_a_port_that_does_not_exist_is_refused() -> None:
    """A port over 65535 is an error; the system would quietly take another one."""
    with pytest.raises(InvalidInputError, match="up to 65535"):
        async with serving("127.0.0.1:70000", lambda _: None, []):
            pass
