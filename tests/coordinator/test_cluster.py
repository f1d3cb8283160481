"""Leases over real gRPC."""

import asyncio

import grpc
import pytest
from bench import LEASE_TTL_S, Bench

from llmpq.errors import ConflictError, InvalidInputError, LeaseExpiredError
from llmpq.rpc import open_channel, rpc_errors
from llmpq.v1 import coordinator_service_pb2 as pb
from llmpq.v1.coordinator_service_pb2_grpc import CoordinatorServiceStub

HEARTBEAT = pb.RegisterStageRequest(heartbeat=pb.Heartbeat())


def _registration(address: str, device_id: str = "a") -> pb.RegisterStageRequest:
    return pb.RegisterStageRequest(registration=pb.StageRegistration(device_id=device_id, address=address))


async def _members(bench: Bench) -> list[str]:
    return [stage.device_id for stage in (await bench.client.cluster()).stages]


async def test_a_stage_is_a_member_while_it_sends_heartbeats(bench: Bench) -> None:
    """Every message is answered with the lease and the interval, and a stage that ends its stream has left."""
    async with bench.running(), open_channel(bench.address) as channel:
        call = CoordinatorServiceStub(channel).RegisterStage()
        await call.write(_registration(bench.planner.address))
        granted = await call.read()
        assert await _members(bench) == ["a"]
        for _ in range(6):  # longer than the lease lives
            await asyncio.sleep(granted.heartbeat_interval_s)
            await call.write(HEARTBEAT)
            assert await call.read() == granted
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await bench.until(lambda members: not members)

    assert granted.lease_id
    assert granted.heartbeat_interval_s == pytest.approx(LEASE_TTL_S / 3)


async def test_a_silent_stage_loses_its_lease(bench: Bench) -> None:
    """Without heartbeats the stream ends with DEADLINE_EXCEEDED, and the stage is no member any more."""
    async with bench.running(), open_channel(bench.address) as channel:
        call = CoordinatorServiceStub(channel).RegisterStage()
        await call.write(_registration(bench.planner.address))
        await call.read()
        with pytest.raises(LeaseExpiredError, match="a came"), rpc_errors():
            await call.read()
        assert await _members(bench) == []


async def test_a_name_belongs_to_one_live_stage(bench: Bench) -> None:
    """Another stage under the same name is ALREADY_EXISTS, and the message says where the first one is."""
    async with bench.running(), open_channel(bench.address) as channel:
        stub = CoordinatorServiceStub(channel)
        first = stub.RegisterStage()
        await first.write(_registration(bench.planner.address))
        await first.read()
        second = stub.RegisterStage()
        await second.write(_registration("elsewhere:1"))
        with pytest.raises(ConflictError, match=bench.planner.address), rpc_errors():
            await second.read()
        assert await _members(bench) == ["a"]


async def test_a_stage_takes_over_from_itself(bench: Bench) -> None:
    """A stage that registers again at its address need not wait for its dead stream's lease to expire."""
    async with bench.running(), open_channel(bench.address) as channel:
        stub = CoordinatorServiceStub(channel)
        first = stub.RegisterStage()
        await first.write(_registration(bench.planner.address))
        old = await first.read()
        second = stub.RegisterStage()
        await second.write(_registration(bench.planner.address))
        new = await second.read()
        first.cancel()
        await asyncio.sleep(0.05)
        assert await _members(bench) == ["a"]

    assert new.lease_id != old.lease_id


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (HEARTBEAT, "registration"),
        (_registration("here:1", device_id=""), "device_id"),
        (_registration(""), "address"),
    ],
)
async def test_a_registration_must_say_who_and_where(
    bench: Bench, message: pb.RegisterStageRequest, field: str
) -> None:
    """A first message without registration, name or address is INVALID_ARGUMENT."""
    async with bench.running(), open_channel(bench.address) as channel:
        call = CoordinatorServiceStub(channel).RegisterStage()
        await call.write(message)
        with pytest.raises(InvalidInputError, match=field), rpc_errors():
            await call.read()
