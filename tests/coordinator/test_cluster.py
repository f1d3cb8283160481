"""Leases over real gRPC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from bench import LEASE_TTL_S, Bench
from fake_stage import FakeStage

from llmpq.errors import ConflictError, InvalidInputError, LeaseExpiredError, UnavailableError
from llmpq.rpc import open_channel, rpc_errors
from llmpq.v1 import coordinator_service_pb2 as pb
from llmpq.v1 import plan_pb2
from llmpq.v1.coordinator_service_pb2_grpc import CoordinatorServiceStub

HEARTBEAT = pb.RegisterStageRequest(heartbeat=pb.Heartbeat())


def _registration(address: str, device_id: str = "a", **description: Any) -> pb.RegisterStageRequest:
    device = plan_pb2.DeviceDescription(**({"kind": "cpu", "schemes": ["w16"], "activation_bytes": 4} | description))
    registration = pb.StageRegistration(device_id=device_id, address=address, description=device)
    return pb.RegisterStageRequest(registration=registration)


@asynccontextmanager
async def _silent_stage() -> AsyncIterator[FakeStage]:
    """A stage server named a that answers, and leaves registering to the test."""
    async with FakeStage("a", coordinator="127.0.0.1:9") as stage:
        stage.leave()
        yield stage


async def _members(bench: Bench) -> list[str]:
    return [stage.device_id for stage in (await bench.client.cluster()).stages]


async def test_a_stage_is_a_member_while_it_sends_heartbeats(bench: Bench) -> None:
    """Every message is answered with the lease and the interval, and a stage that ends its stream has left."""
    async with _silent_stage() as stage, bench.running(), open_channel(bench.address) as channel:
        call = CoordinatorServiceStub(channel).RegisterStage()
        await call.write(_registration(stage.address))
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
    async with _silent_stage() as stage, bench.running(), open_channel(bench.address) as channel:
        call = CoordinatorServiceStub(channel).RegisterStage()
        await call.write(_registration(stage.address))
        await call.read()
        with pytest.raises(LeaseExpiredError, match="a came"), rpc_errors():
            await call.read()
        assert await _members(bench) == []


async def test_a_name_belongs_to_one_live_stage(bench: Bench) -> None:
    """Another stage under the same name is ALREADY_EXISTS, and the message says where the first one is."""
    async with (
        _silent_stage() as stage,
        _silent_stage() as other,
        bench.running(),
        open_channel(bench.address) as channel,
    ):
        stub = CoordinatorServiceStub(channel)
        first = stub.RegisterStage()
        await first.write(_registration(stage.address))
        await first.read()
        second = stub.RegisterStage()
        await second.write(_registration(other.address))
        with pytest.raises(ConflictError, match=stage.address), rpc_errors():
            await second.read()
        assert await _members(bench) == ["a"]


async def test_a_stage_takes_over_from_itself(bench: Bench) -> None:
    """A stage that registers again at its address need not wait for its dead stream's lease to expire."""
    async with _silent_stage() as stage, bench.running(), open_channel(bench.address) as channel:
        stub = CoordinatorServiceStub(channel)
        first = stub.RegisterStage()
        await first.write(_registration(stage.address))
        old = await first.read()
        second = stub.RegisterStage()
        await second.write(_registration(stage.address))
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
        (_registration("here"), "registration.address"),
        (_registration("here:port"), "registration.address"),
        (
            pb.RegisterStageRequest(registration=pb.StageRegistration(device_id="a", address="here:1")),
            "registration.description",
        ),
        (_registration("here:1", kind="abacus"), "registration.description.kind"),
        (_registration("here:1", schemes=[]), "registration.description.schemes"),
        (_registration("here:1", schemes=["w5"]), "registration.description.schemes"),
        (_registration("here:1", activation_bytes=0), "registration.description.activation_bytes"),
    ],
)
async def test_a_registration_must_say_who_and_what_and_where(
    bench: Bench, message: pb.RegisterStageRequest, field: str
) -> None:
    """A first message without registration, name, address or a device that can be is INVALID_ARGUMENT."""
    async with bench.running(), open_channel(bench.address) as channel:
        call = CoordinatorServiceStub(channel).RegisterStage()
        await call.write(message)
        with pytest.raises(InvalidInputError, match=field), rpc_errors():
            await call.read()


async def test_a_stage_that_cannot_be_reached_is_no_member(bench: Bench) -> None:
    """At the address that a stage gives it must answer, under its own name; the error says which flag to set."""
    async with _silent_stage() as stage, bench.running(), open_channel(bench.address) as channel:
        for device_id, address in (("a", "127.0.0.1:1"), ("b", stage.address)):
            call = CoordinatorServiceStub(channel).RegisterStage()
            await call.write(_registration(address, device_id))
            with pytest.raises(UnavailableError, match="--advertise") as refused, rpc_errors():
                await call.read()
            assert address in refused.value.message
        assert await _members(bench) == []
