"""What one planner process is told at its start."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PlannerConfig:
    """Settings of a planner process.

    Attributes:
        listen: host:port to serve at.
        time_limit_s: Time a search may take where the request sets none.
        log_level: As in `logging`.
    """

    listen: str = "127.0.0.1:50052"
    time_limit_s: float = 5.0
    log_level: str = "info"
