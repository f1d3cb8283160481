"""What one planner process is told at its start."""

from dataclasses import dataclass

from llmpq.rpc.channel import MAX_PAYLOAD_BYTES


@dataclass(frozen=True)
class PlannerConfig:
    """Settings of a planner process.

    Attributes:
        listen: host:port to serve at.
        time_limit_s: Time a search may take where the request sets none.
        log_level: As in `logging`.
        max_payload_bytes: Most bytes of one frame on the data plane; bounds the rows of a micro-batch.
    """

    listen: str = "127.0.0.1:50052"
    time_limit_s: float = 5.0
    log_level: str = "info"
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
