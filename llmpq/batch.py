"""A batch of requests, its results, and the cluster that runs it, as clients see them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from llmpq.device import DeviceDescription
from llmpq.plan import Plan, PlanOptions, StageMemory


class BatchState(StrEnum):
    """Mirror of the message enum `BatchState`."""

    QUEUED = "BATCH_STATE_QUEUED"
    VALIDATING = "BATCH_STATE_VALIDATING"
    PLANNING = "BATCH_STATE_PLANNING"
    LOADING = "BATCH_STATE_LOADING"
    RUNNING = "BATCH_STATE_RUNNING"
    COMPLETED = "BATCH_STATE_COMPLETED"
    FAILED = "BATCH_STATE_FAILED"
    CANCELLED = "BATCH_STATE_CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether the batch will not change any more."""
        return self in {BatchState.COMPLETED, BatchState.FAILED, BatchState.CANCELLED}

    @property
    def label(self) -> str:
        """The state for people: `running`."""
        return self.removeprefix("BATCH_STATE_").lower()


@dataclass(frozen=True)
class BatchOptions:
    """Mirror of the message `BatchOptions`; see there for each field."""

    model: str = ""
    request_id: str = ""
    plan_options: PlanOptions = field(default_factory=PlanOptions)
    default_max_tokens: int = 0
    ignore_stop: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StageReport:
    """Mirror of the message `StageReport`: predicted beside measured, for one stage."""

    device_id: str
    layers_done: int
    layers_total: int
    predicted_prefill_ms: float
    measured_prefill_ms: float
    predicted_decode_ms: float
    measured_decode_ms: float
    busy_ratio: float
    memory: StageMemory | None = None
    activity: str = ""
    waiting_input_ratio: float = 0.0
    waiting_output_ratio: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Mirror of the message `Batch`; see there for each field."""

    batch_id: str
    state: BatchState
    status_message: str
    model: str
    requests_total: int
    requests_completed: int
    requests_failed: int
    prompt_tokens: int
    generated_tokens: int
    remaining_tokens_max: int
    stages: tuple[StageReport, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    create_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    plan: Plan | None = None

    @property
    def running_s(self) -> float:
        """Seconds from the start of generation to the end; 0 for a batch that has not reached both."""
        if self.start_time is None or self.end_time is None:
            return 0.0
        return (self.end_time - self.start_time).total_seconds()


@dataclass(frozen=True)
class Result:
    """Mirror of the message `GetResultsResponse`: one line of OpenAI's batch output format, and where it belongs."""

    sequence: int
    custom_id: str
    line_number: int
    is_error: bool
    json: str


@dataclass(frozen=True)
class ClusterStage:
    """Mirror of the message `ClusterStage`; see there for each field."""

    device_id: str
    address: str
    description: DeviceDescription
    plan_hash: str
    register_time: datetime | None = None


@dataclass(frozen=True)
class Cluster:
    """Mirror of the message `GetClusterResponse`; see there for each field."""

    stages: tuple[ClusterStage, ...]
    planner_address: str


@dataclass(frozen=True)
class PreviewedPlan:
    """Mirror of the message `PreviewedPlan`: what one strategy came to, a plan or the reason why there is none."""

    strategy: str
    error: str
    plan: Plan | None = None
