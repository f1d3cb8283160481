"""What a coordinator process is told when it starts."""

from dataclasses import dataclass
from pathlib import Path

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
    """

    planner: str
    state: Path
    listen: str = "127.0.0.1:50051"
    advertise: str = ""
    max_queued_requests: int = 200_000
    lease_ttl_s: float = 10.0
    log_level: str = "info"

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
