"""Every error that one process of the mesh tells another.

MeshError
├── InvalidInputError     the caller sent something wrong            INVALID_ARGUMENT
├── NotFoundError         the caller named something that is not there     NOT_FOUND
├── ConflictError         the name is taken                          ALREADY_EXISTS
├── PreconditionError     right request, wrong state or machine      FAILED_PRECONDITION
│   └── DoesNotFitError   memory: which device, how many bytes short
├── OverloadedError       full; try again later                      RESOURCE_EXHAUSTED
├── UnavailableError      a process or link is gone                  UNAVAILABLE
├── LeaseExpiredError     a heartbeat did not come in time           DEADLINE_EXCEEDED
├── CorruptDataError      bytes changed on the way                   DATA_LOSS
└── InternalError         our own bug, or a failing device           INTERNAL

`llmpq.rpc.status` maps them to gRPC status codes and back, in one place.
"""

from collections.abc import Mapping


class MeshError(Exception):
    """An error with a machine-readable reason, fit to cross a process boundary.

    Args:
        message: One or two sentences for people: what is wrong with which object, and the way out.
        reason: UPPER_SNAKE_CASE identifier, stable across versions.
        subject: The object concerned: a field path, device id, batch id or file.
        metadata: Further facts as strings, for programs.
    """

    default_reason = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        subject: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.subject = subject
        self.metadata = dict(metadata or {})


class InvalidInputError(MeshError):
    """Expected error: the caller must correct what it sent; `subject` is the field."""

    default_reason = "INVALID_INPUT"


class NotFoundError(MeshError):
    """Expected error: the caller must name something that exists."""

    default_reason = "NOT_FOUND"


class ConflictError(MeshError):
    """Expected error: the caller must choose another name."""

    default_reason = "ALREADY_EXISTS"


class PreconditionError(MeshError):
    """Expected error: the request is right, but not in this state or on this machine."""

    default_reason = "FAILED_PRECONDITION"


class DoesNotFitError(PreconditionError):
    """Expected error: something needs more memory than a device has; the caller must plan again."""

    default_reason = "DOES_NOT_FIT"

    @classmethod
    def on_device(cls, device_id: str, what: str, short_bytes: int) -> "DoesNotFitError":
        """The error for `what` being `short_bytes` too large for `device_id`."""
        return cls(
            f"{what} does not fit device {device_id}: {short_bytes:,} bytes short. Allow lower precisions, "
            "give the device a larger memory budget, or add a device.",
            subject=device_id,
            metadata={"short_bytes": str(short_bytes)},
        )


class OverloadedError(MeshError):
    """Expected error: the caller should try again after `retry_after_s` seconds."""

    default_reason = "OVERLOADED"

    def __init__(self, message: str, *, retry_after_s: float, subject: str = "") -> None:
        super().__init__(message, subject=subject, metadata={"retry_after_s": f"{retry_after_s:g}"})
        self.retry_after_s = retry_after_s


class UnavailableError(MeshError):
    """Expected error: a peer cannot be reached; whoever owns the connection should try again."""

    default_reason = "UNAVAILABLE"


class LeaseExpiredError(MeshError):
    """Expected error: a stage server was silent for too long; it must register again."""

    default_reason = "LEASE_EXPIRED"


class CorruptDataError(MeshError):
    """Unexpected error: bytes changed on the way; an operator should suspect network or memory."""

    default_reason = "CORRUPT_DATA"


class InternalError(MeshError):
    """Unexpected error: a bug of ours or a failing device; an operator should read the log."""

    default_reason = "INTERNAL"
