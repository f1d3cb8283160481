"""The one place where errors become gRPC statuses and statuses become errors."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from llmpq import errors

ERROR_DOMAIN = "llmpq"
DETAILS_KEY = "grpc-status-details-bin"
#: Characters of a message or subject that go over the wire.
_MAX_TEXT = 400

#: Most specific class first; the first match decides.
STATUS_OF_ERROR: dict[type[errors.MeshError], grpc.StatusCode] = {
    errors.InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.ConflictError: grpc.StatusCode.ALREADY_EXISTS,
    errors.DoesNotFitError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.LeaseExpiredError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.CorruptDataError: grpc.StatusCode.DATA_LOSS,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}


def status_of(error: errors.MeshError) -> status_pb2.Status:
    """The google.rpc.Status of an error: code, message, ErrorInfo, and the detail that its class calls for."""
    code = next(code for cls, code in STATUS_OF_ERROR.items() if isinstance(error, cls))
    message, subject = _shortened(error.message), _shortened(error.subject)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=ERROR_DOMAIN,
            metadata=error.metadata | {"subject": subject},
        ),
    ]
    if isinstance(error, errors.InvalidInputError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=subject,
            description=message,
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.PreconditionError):
        failure = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason,
            subject=subject,
            description=message,
        )
        details.append(error_details_pb2.PreconditionFailure(violations=[failure]))
    if isinstance(error, errors.OverloadedError):
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(
        code=code.value[0],
        message=message,
        details=[_packed(detail) for detail in details],
    )


async def abort_with(context: grpc.aio.ServicerContext[object, object], error: errors.MeshError) -> None:
    """Ends an RPC with the status of `error`; never returns normally."""
    status = status_of(error)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))


def error_from_rpc(error: grpc.aio.AioRpcError, peer: str = "") -> errors.MeshError:
    """The error that a failed call stands for; `peer` is named in its message where the peer itself could not speak."""
    status = _status_in(error)
    if status is not None:
        return error_of_status(status)
    where = f" from {peer}" if peer else ""
    cls = _ERROR_OF_CODE.get(error.code(), errors.InternalError)
    message = f"{error.code().name}{where}: {error.details()}"
    if cls is errors.OverloadedError:
        return errors.OverloadedError(message, retry_after_s=1.0)
    return cls(message, reason=error.code().name, subject=peer)


@contextmanager
def rpc_errors(peer: str = "") -> Iterator[None]:
    """Turns a failed call inside the block into the error it stands for."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error, peer) from error


#: Going back, DoesNotFitError is told from PreconditionError by its reason.
_ERROR_OF_CODE = {code: cls for cls, code in STATUS_OF_ERROR.items() if cls is not errors.DoesNotFitError}


def _shortened(text: str) -> str:
    """A text that may quote what the caller sent; a status of more than some kilobytes would break the stream."""
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _status_in(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None


def error_of_status(status: status_pb2.Status) -> errors.MeshError:
    """The error that `status_of` has made a status of."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
    metadata = dict(info.metadata)
    subject = metadata.pop("subject", "")
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    cls = _ERROR_OF_CODE.get(code, errors.InternalError)
    if cls is errors.OverloadedError:
        retry_after_s = float(metadata.get("retry_after_s", "1"))
        return errors.OverloadedError(status.message, retry_after_s=retry_after_s, subject=subject)
    if info.reason == errors.DoesNotFitError.default_reason:
        cls = errors.DoesNotFitError
    return cls(status.message, reason=info.reason, subject=subject, metadata=metadata)
