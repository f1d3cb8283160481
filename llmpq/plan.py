"""The planning problem and its answer, as the planner, the coordinator and the CLI share them."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from llmpq.device import DeviceProfile
from llmpq.model import ModelShape
from llmpq.schemes import DEFAULT_GROUP_SIZE

PLAN_VERSION = 1

#: Ways to make a plan, the default first.
STRATEGIES = ("llm-pq", "llm-pq-heuristic", "adabits", "pipeedge", "uniform", "het")
#: Ways to make one for comparison only: they move weights between host and device, which the mesh cannot.
OFFLOADING_STRATEGIES = ("flexgen", "flexgen-int8")
#: What a plan can be best at, the default first.
OBJECTIVES = ("latency", "throughput", "cost")
#: Where a search ends if nobody says where: far below what predictions are good to.
DEFAULT_OPTIMALITY_GAP = 0.002
#: Ways to round weights, the default first: see `Rounding` in the contract.
ROUNDING_METHODS = ("nearest", "hqq", "gptq")
#: Ways to rate what quantizing a layer costs, the default first.
INDICATORS = ("hessian", "variance", "loss", "random")


@dataclass(frozen=True)
class LengthBucket:
    """Mirror of the message `LengthBucket`: `count` requests of the same lengths, in tokens."""

    prompt_tokens: int
    output_tokens: int
    count: int


@dataclass(frozen=True)
class LayerSensitivity:
    """Mirror of the message `LayerSensitivity`."""

    layer: int
    scheme: str
    omega: float


@dataclass(frozen=True)
class Rounding:
    """Mirror of the message `Rounding`; see there for each field."""

    method: str = ""
    is_symmetric: bool = False
    is_unrotated: bool = False

    @property
    def effective_method(self) -> str:
        """The method, the default filled in."""
        return self.method or ROUNDING_METHODS[0]

    @property
    def needs_calibration(self) -> bool:
        """Whether weights are rounded by the inputs that they meet."""
        return self.effective_method == "gptq"


#: The rounding where none is asked for.
NEAREST = Rounding()


@dataclass(frozen=True)
class PlanOptions:
    """Mirror of the message `PlanOptions`; see there for each field."""

    quality_weight: float | None = None
    quality_budget: float | None = None
    strategy: str = ""
    allowed_schemes: tuple[str, ...] = ()
    group_size: int | None = None
    prefill_micro_batch: int = 0
    decode_micro_batch: int = 0
    num_lanes: int = 0
    use_all_devices: bool = False
    time_limit_s: float = 0.0
    rounding: Rounding = NEAREST
    indicator: str = ""
    layer_schemes: tuple[str, ...] = ()
    optimality_gap: float | None = None
    objective: str = ""
    deadline_s: float = 0.0
    layers_per_group: int = 0
    has_int8_kv_cache: bool = False
    has_int8_activations: bool = False

    @property
    def effective_objective(self) -> str:
        """The objective, the default filled in."""
        return self.objective or OBJECTIVES[0]

    @property
    def effective_optimality_gap(self) -> float:
        """The gap at which a search ends, the default filled in."""
        return DEFAULT_OPTIMALITY_GAP if self.optimality_gap is None else self.optimality_gap

    @property
    def usable_schemes(self) -> tuple[str, ...]:
        """Schemes that some layer may have; none means all."""
        return tuple(dict.fromkeys(self.layer_schemes)) or self.allowed_schemes

    @property
    def effective_indicator(self) -> str:
        """The indicator, the default filled in."""
        return self.indicator or INDICATORS[0]

    @property
    def effective_group_size(self) -> int:
        """The group size, the default filled in."""
        return DEFAULT_GROUP_SIZE if self.group_size is None else self.group_size


@dataclass(frozen=True)
class PlanningProblem:
    """Mirror of the message `PlanningProblem`; see there for each field."""

    model: str
    shape: ModelShape
    devices: tuple[DeviceProfile, ...]
    workload: tuple[LengthBucket, ...]
    sensitivities: tuple[LayerSensitivity, ...] = ()
    options: PlanOptions = PlanOptions()


@dataclass(frozen=True)
class LayerPrecision:
    """Mirror of the message `LayerPrecision`; group_size 0 is per channel."""

    scheme: str
    group_size: int = 0


@dataclass(frozen=True)
class StageMemory:
    """Mirror of the message `StageMemory`; see there for each field."""

    layer_bytes: int = 0
    embedding_head_bytes: int = 0
    kv_bytes: int = 0
    workspace_bytes: int = 0
    budget_bytes: int = 0

    @property
    def used_bytes(self) -> int:
        """All that counts against the budget."""
        return self.layer_bytes + self.embedding_head_bytes + self.kv_bytes + self.workspace_bytes


@dataclass(frozen=True)
class StagePlan:
    """Mirror of the message `StagePlan`; see there for each field."""

    device_id: str
    first_layer: int
    layers: tuple[LayerPrecision, ...]
    memory: StageMemory = StageMemory()
    prefill_ms: float = 0.0
    decode_ms: float = 0.0

    @property
    def end_layer(self) -> int:
        """One past the last layer."""
        return self.first_layer + len(self.layers)


@dataclass(frozen=True)
class PlanEstimate:
    """Mirror of the message `PlanEstimate`; see there for each field."""

    total_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    throughput_tokens_per_s: float = 0.0
    quality_loss: float = 0.0
    gap: float = 0.0
    solve_s: float = 0.0
    period_s: float = 0.0
    cost_usd: float = 0.0
    layers_per_group: int = 0


@dataclass(frozen=True)
class Plan:
    """Mirror of the message `Plan`; see there for each field."""

    model: str
    strategy: str
    stages: tuple[StagePlan, ...]
    prefill_micro_batch: int
    decode_micro_batch: int
    num_lanes: int
    max_sequence_tokens: int
    max_prefill_tokens: int
    estimate: PlanEstimate = PlanEstimate()
    version: int = PLAN_VERSION
    hash: str = ""
    rounding: Rounding = NEAREST
    has_int8_kv_cache: bool = False
    has_int8_activations: bool = False

    @property
    def num_slots(self) -> int:
        """Sequences that the KV cache of every stage holds."""
        return self.num_lanes * self.decode_micro_batch

    def with_hash(self) -> "Plan":
        """This plan with `hash` set to the digest of its decisions, free of every predicted figure."""
        decisions = {
            key: value for key, value in asdict(self).items() if key not in {"stages", "estimate", "hash", "strategy"}
        }
        decisions["stages"] = [
            [stage.device_id, stage.first_layer, [asdict(layer) for layer in stage.layers]] for stage in self.stages
        ]
        canonical = json.dumps(decisions, sort_keys=True, separators=(",", ":"))
        return replace(self, hash=hashlib.sha256(canonical.encode()).hexdigest())
