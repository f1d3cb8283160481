"""Errors over the wire: every class through a real server and back."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from llmpq import errors
from llmpq.rpc import open_channel, rpc_errors, serving
from llmpq.rpc.status import DETAILS_KEY, STATUS_OF_ERROR
from llmpq.v1 import coordinator_service_pb2 as pb
from llmpq.v1.coordinator_service_pb2_grpc import (
    CoordinatorServiceServicer,
    CoordinatorServiceStub,
    add_CoordinatorServiceServicer_to_server,
)

ERRORS: list[errors.MeshError] = [
    errors.InvalidInputError("No lines.", subject="lines"),
    errors.NotFoundError("No model at 'x'.", reason="MODEL_NOT_FOUND", subject="x"),
    errors.ConflictError("Two stages are called 'a'.", subject="a"),
    errors.PreconditionError("Nothing is loaded.", reason="NOT_LOADED", subject="stage 0"),
    errors.DoesNotFitError.on_device("gpu-1", "The slice", 1_234_567),
    errors.OverloadedError("The queue is full.", retry_after_s=2.5, subject="queue"),
    errors.UnavailableError("The next stage is gone.", subject="stage 1"),
    errors.LeaseExpiredError("No heartbeat for 10 s.", subject="gpu-1"),
    errors.CorruptDataError("Frame 7: bad checksum.", subject="frame 7"),
    errors.InternalError("Computing failed in layer 3.", metadata={"layer": "3"}),
]
EVERY_ERROR = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


class _Raises(CoordinatorServiceServicer):
    """A coordinator whose every call, of whatever kind, fails with one error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def GetBatch(self, _request: object, _context: object) -> pb.GetBatchResponse:  # noqa: N802
        raise self.error

    async def WatchBatch(  # noqa: N802
        self, _request: object, _context: object
    ) -> AsyncIterator[pb.WatchBatchResponse]:
        yield pb.WatchBatchResponse()
        raise self.error

    async def SubmitBatch(  # noqa: N802
        self, request_iterator: AsyncIterable[object], _context: object
    ) -> pb.SubmitBatchResponse:
        await anext(request_iterator.__aiter__())
        raise self.error

    async def RegisterStage(  # noqa: N802
        self, request_iterator: AsyncIterable[object], _context: object
    ) -> AsyncIterator[pb.RegisterStageResponse]:
        async for _ in request_iterator:
            yield pb.RegisterStageResponse()
            raise self.error


@asynccontextmanager
async def failing_with(error: Exception) -> AsyncIterator[CoordinatorServiceStub]:
    """A stub of a coordinator that always fails with `error`."""
    async with (
        serving(
            "127.0.0.1:0",
            lambda server: add_CoordinatorServiceServicer_to_server(_Raises(error), server),
            ["llmpq.v1.CoordinatorService"],
        ) as server,
        # Not the control channel: that one would retry what is UNAVAILABLE.
        open_channel(server.address, is_data_plane=True) as channel,
    ):
        yield CoordinatorServiceStub(channel)


def test_every_class_of_error_is_tried() -> None:
    """The list above has one error of each class that has a status."""
    assert {type(error) for error in ERRORS} == set(STATUS_OF_ERROR)


@EVERY_ERROR
async def test_an_error_arrives_as_itself(error: errors.MeshError) -> None:
    """Class, message, reason, subject and metadata come back as they were raised."""
    async with failing_with(error) as stub:
        with pytest.raises(type(error)) as caught, rpc_errors("peer"):
            await stub.GetBatch(pb.GetBatchRequest(), timeout=10)
    assert type(caught.value) is type(error)
    for attribute in ("message", "reason", "subject", "metadata"):
        assert getattr(caught.value, attribute) == getattr(error, attribute)


@EVERY_ERROR
async def test_an_error_is_a_standard_status_with_standard_details(error: errors.MeshError) -> None:
    """Any client finds the canonical code, ErrorInfo, and the google.rpc detail that belongs to the code."""
    async with failing_with(error) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetBatch(pb.GetBatchRequest(), timeout=10)
    assert caught.value.code() is STATUS_OF_ERROR[type(error)]
    assert caught.value.details() == error.message
    raw = dict(caught.value.trailing_metadata())[DETAILS_KEY]
    status = status_pb2.Status.FromString(raw)
    assert status.code == caught.value.code().value[0]
    details = {detail.type_url.rpartition(".")[2]: detail for detail in status.details}
    info = error_details_pb2.ErrorInfo.FromString(details.pop("ErrorInfo").value)
    assert (info.domain, info.reason, info.metadata["subject"]) == ("llmpq", error.reason, error.subject)
    if isinstance(error, errors.InvalidInputError):
        bad = error_details_pb2.BadRequest.FromString(details.pop("BadRequest").value)
        assert bad.field_violations[0].field == "lines"
    if isinstance(error, errors.PreconditionError):
        failure = error_details_pb2.PreconditionFailure.FromString(details.pop("PreconditionFailure").value)
        assert (failure.violations[0].type, failure.violations[0].subject) == (error.reason, error.subject)
    if isinstance(error, errors.OverloadedError):
        retry = error_details_pb2.RetryInfo.FromString(details.pop("RetryInfo").value)
        assert retry.retry_delay.ToMilliseconds() == 2500
    assert details == {}


async def test_memory_that_is_short_is_named_in_bytes() -> None:
    """A slice that does not fit says on which device and by how many bytes, for people and for programs."""
    async with failing_with(errors.DoesNotFitError.on_device("gpu-1", "The slice", 1_234_567)) as stub:
        with pytest.raises(errors.DoesNotFitError, match=r"gpu-1: 1,234,567 bytes short") as caught, rpc_errors():
            await stub.GetBatch(pb.GetBatchRequest(), timeout=10)
    assert caught.value.metadata == {"short_bytes": "1234567"}


@pytest.mark.parametrize("text", ["x" * 100_000, "\u6f22" * 100_000], ids=["ascii", "cjk"])
async def test_an_error_that_quotes_a_long_text_keeps_its_code(text: str) -> None:
    """What an error quotes is cut before it outgrows what a status may be."""
    async with failing_with(errors.NotFoundError(f"No batch '{text}'.", subject=text)) as stub:
        with pytest.raises(errors.NotFoundError, match="No batch"), rpc_errors():
            await stub.GetBatch(pb.GetBatchRequest(), timeout=10)


async def test_an_overloaded_peer_says_when_to_try_again() -> None:
    """The delay survives the wire."""
    async with failing_with(errors.OverloadedError("Full.", retry_after_s=0.75)) as stub:
        with pytest.raises(errors.OverloadedError) as caught, rpc_errors():
            await stub.GetBatch(pb.GetBatchRequest(), timeout=10)
    assert caught.value.retry_after_s == 0.75


async def test_a_stream_fails_like_a_unary_call() -> None:
    """Streaming and bidirectional handlers raise the same way, also after their first message."""
    async with failing_with(errors.NotFoundError("No batch.", subject="b")) as stub:
        streams = (
            stub.WatchBatch(pb.WatchBatchRequest()),
            stub.RegisterStage(iter([pb.RegisterStageRequest()])),
        )
        for stream in streams:
            with pytest.raises(errors.NotFoundError, match=r"No batch\."), rpc_errors():
                _ = [message async for message in stream]


async def test_a_refusal_reaches_a_client_that_is_still_sending() -> None:
    """The server reads what is left before it refuses; otherwise a write under way would fail without a reason."""
    async with failing_with(errors.OverloadedError("Full.", retry_after_s=1.0)) as stub:
        for _ in range(10):
            call = stub.SubmitBatch()
            for _ in range(20):
                await call.write(pb.SubmitBatchRequest(lines=["x" * 200_000]))
            await call.done_writing()
            with pytest.raises(errors.OverloadedError), rpc_errors():
                await call


async def test_a_bug_is_internal_and_tells_nothing_of_the_inside() -> None:
    """An exception that is none of ours is INTERNAL with its class; its text, which may quote a prompt, stays here."""
    async with failing_with(KeyError("a secret prompt")) as stub:
        with pytest.raises(errors.InternalError, match="GetBatch failed: KeyError") as caught, rpc_errors():
            await stub.GetBatch(pb.GetBatchRequest(), timeout=10)
    assert "secret" not in caught.value.message


async def test_a_failure_below_the_application_names_the_peer() -> None:
    """A refused connection and a missed deadline carry no details of ours; the address says who failed."""
    async with open_channel("127.0.0.1:1", is_data_plane=True) as channel:
        with pytest.raises(errors.UnavailableError, match=r"127\.0\.0\.1:1") as caught, rpc_errors("127.0.0.1:1"):
            await CoordinatorServiceStub(channel).GetBatch(pb.GetBatchRequest(), timeout=10)
    assert caught.value.subject == "127.0.0.1:1"


async def test_a_status_of_another_make_maps_by_its_code() -> None:
    """A peer without our details, such as a proxy, still gives the class of its code; unknown codes are internal."""
    async with (
        serving("127.0.0.1:0", lambda _server: None, []) as server,
        open_channel(server.address, is_data_plane=True) as channel,
    ):
        with pytest.raises(errors.InternalError, match="UNIMPLEMENTED from there") as caught, rpc_errors("there"):
            await CoordinatorServiceStub(channel).GetBatch(pb.GetBatchRequest(), timeout=10)
    assert caught.value.reason == "UNIMPLEMENTED"
