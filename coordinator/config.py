"""What a coordinator process is told when it starts."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from llmpq.address import split_address
from llmpq.errors import InvalidInputError

_WILDCARD_HOSTS = {"0.0.0.0", "[::]", "*"}


@dataclass(frozen=True)
class CoordinatorConfig:
    """Settings of one coordinator.

    Attributes:
        planner: host:port of the planner.
        state: Directory of the job store and of everything measured once; created if missing.
        listen: host:port to serve on; port 0 picks a free one.
        advertise: host:port at which the last stage reaches this process; empty means the address it listens on.
        max_queued_requests: Requests that may wait or run at any time, over all batches.
        lease_ttl_s: A stage that is silent for this long is no member any more.
        log_level: Least severe level to log.

    Raises:
        InvalidInputError: A setting that cannot be; the message names its flag.
    """

    planner: str
    state: Path
    listen: str = "127.0.0.1:50051"
    advertise: str = ""
    max_queued_requests: int = 200_000
    lease_ttl_s: float = 10.0
    log_level: str = "info"

    def __post_init__(self) -> None:
        if not (self.lease_ttl_s > 0 and isfinite(self.lease_ttl_s)):
            raise _wrong("lease-ttl", f"{self.lease_ttl_s:g} is no time in seconds above 0")
        if self.max_queued_requests < 1:
            raise _wrong("max-queued-requests", f"{self.max_queued_requests} is less than 1")
        split_address(self.planner, "--planner")
        if self.advertise:
            split_address(self.advertise, "--advertise")

    def advertised(self, bound_address: str) -> str:
        """The address for others, given the one that was bound.

        Raises:
            InvalidInputError: It listens on every interface and nothing says which of them others can reach.
        """
        if self.advertise:
            return self.advertise
        if bound_address.rpartition(":")[0] in _WILDCARD_HOSTS:
            raise InvalidInputError(
                f"Listening on {bound_address} does not say how stages reach this host: pass --advertise HOST:PORT.",
                subject="advertise",
            )
        return bound_address


def _wrong(flag: str, problem: str) -> InvalidInputError:
    return InvalidInputError(f"--{flag}: {problem}.", subject=flag)
