"""A planning problem in names: what can be planned without a device and without weights."""

from dataclasses import dataclass, field

from llmpq.model import ModelShape
from llmpq.plan import LengthBucket, PlanOptions


@dataclass(frozen=True)
class Scenario:
    """Mirror of the message `ResolveScenarioRequest`; see there for each field."""

    model_name: str | None = None
    shape: ModelShape | None = None
    cluster_name: str | None = None
    cluster_document: str | None = None
    catalog_documents: tuple[str, ...] = ()
    kernels: str = ""
    workload: tuple[LengthBucket, ...] = ()
    lengths: str = ""
    num_requests: int = 0
    options: PlanOptions = field(default_factory=PlanOptions)
