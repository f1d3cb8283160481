"""What plans come to beside one another: in simulated time, explained, and for a row of quality budgets."""

from dataclasses import dataclass

from llmpq.plan import Plan, PlanEstimate


@dataclass(frozen=True)
class Simulation:
    """Mirror of the message `Simulation`; every figure is simulated."""

    total_s: float
    prefill_s: float
    throughput_tokens_per_s: float
    busy_ratios: tuple[float, ...] = ()


@dataclass(frozen=True)
class OffloadStage:
    """Mirror of the message `OffloadStage`; see there for each field."""

    device_id: str
    first_layer: int
    num_layers: int
    scheme: str
    weights_on_device: float
    cache_on_device: float
    states_on_device: float
    device_bytes: int
    host_bytes: int
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True)
class OffloadPlan:
    """Mirror of the message `OffloadPlan`; see there for each field."""

    stages: tuple[OffloadStage, ...]
    device_batch: int
    batches_per_block: int
    num_blocks: int
    estimate: PlanEstimate

    @property
    def block(self) -> int:
        """Sequences of a block."""
        return self.device_batch * self.batches_per_block


@dataclass(frozen=True)
class StrategyResult:
    """Mirror of the message `StrategyResult`; see there for each field."""

    strategy: str
    plan: Plan | None = None
    error: str = ""
    reason: str = ""
    simulation: Simulation | None = None
    offload: OffloadPlan | None = None

    @property
    def estimate(self) -> PlanEstimate | None:
        """What the closed formulas expect; None if there is no plan."""
        found = self.plan or self.offload
        return found.estimate if found else None

    @property
    def throughput_tokens_per_s(self) -> float:
        """Of the simulation, or where the batch is too long for one, of the closed formulas; 0 without a plan."""
        found = self.simulation or self.estimate
        return found.throughput_tokens_per_s if found else 0.0


@dataclass(frozen=True)
class StageExplanation:
    """Mirror of the message `StageExplanation`; see there for each field."""

    device_id: str
    memory_ratio: float
    prefill_ratio: float
    decode_ratio: float
    binding: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counterfactual:
    """Mirror of the message `Counterfactual`; see there for each field."""

    change: str
    throughput_tokens_per_s: float = 0.0
    quality_loss: float = 0.0
    objective: float = 0.0
    gap: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Explanation:
    """Mirror of the message `ExplainPlanResponse`; see there for each field."""

    plan: Plan
    simulation: Simulation | None
    stages: tuple[StageExplanation, ...]
    summary: str
    counterfactuals: tuple[Counterfactual, ...] = ()


@dataclass(frozen=True)
class TradePoint:
    """Mirror of the message `TradePoint`."""

    plan: Plan
    simulation: Simulation | None = None

    @property
    def throughput_tokens_per_s(self) -> float:
        """Of the simulation, or where the batch is too long for one, of the closed formulas."""
        return (self.simulation or self.plan.estimate).throughput_tokens_per_s
