"""FlexGen: what does not fit the devices waits in host memory. For comparison only: the mesh cannot run such a plan."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmpq.comparison import OffloadPlan
from llmpq.device import Phase
from llmpq.errors import PreconditionError
from llmpq.plan import LayerPrecision, PlanEstimate
from llmpq.schedule.scheduler import Limits
from planner_svc.cost import CostModel, StageTimes, profiles_alike
from planner_svc.offload import OffloadingStage, Policy, Shares
from planner_svc.quality import step_omega
from planner_svc.schedule import Schedule
from planner_svc.simulator import Run, run
from planner_svc.strategies.common import halvings
from planner_svc.strategies.uniform import even
from planner_svc.workload import Load

#: How each variant stores weights. What LLM-PQ's scripts call int8 is FlexGen's 4-bit compression; here it is 8 bits.
SCHEMES = {"flexgen": "w16", "flexgen-int8": "w8"}


@dataclass(frozen=True)
class OffloadPipeline:
    """Stages with their shares chosen.

    Attributes:
        cost: Of the problem.
        stages: In pipeline order.
        shares: Of each stage.
        policy: Sizes.
    """

    cost: CostModel
    stages: tuple[OffloadingStage, ...]
    shares: tuple[Shares, ...]
    policy: Policy

    @property
    def schedule(self) -> Schedule:
        """The workload in blocks."""
        return _schedule(self.cost, self.policy)

    def times(self, phase: Phase, load: Load) -> StageTimes:
        """Seconds of each stage and link for a block."""
        senders = (None, *(stage.device_id for stage in self.stages[:-1]))
        return StageTimes(
            tuple(stage.stage_s(shares, phase, load) for stage, shares in zip(self.stages, self.shares, strict=True)),
            tuple(
                self.cost.link_s(sender, stage.device_id, load)
                for sender, stage in zip(senders, self.stages, strict=True)
            ),
        )

    def plan(self) -> OffloadPlan:
        """The plan with what the closed formulas expect of it."""
        schedule, workload = self.schedule, self.cost.workload
        prefill = self.times(Phase.PREFILL, schedule.prefill_load)
        decode = self.times(Phase.DECODE, schedule.decode_load)
        prefill_s = schedule.prefill_s(prefill.total_s, prefill.slowest_s)
        decode_s = schedule.decode_s(decode.total_s, decode.slowest_s)
        total_s = prefill_s + decode_s
        loss = step_omega(self.stages[0].precision.scheme)
        described = zip(self.stages, self.shares, strict=True)
        return OffloadPlan(
            stages=tuple(stage.described(shares, schedule) for stage, shares in described),
            device_batch=self.policy.device_batch,
            batches_per_block=self.policy.batches_per_block,
            num_blocks=self.policy.num_blocks,
            estimate=PlanEstimate(total_s, prefill_s, decode_s, workload.output_tokens / total_s, loss),
        )

    def simulate(self) -> Run:
        """The batch in simulated time."""
        setting = self.policy.setting(self.cost.workload.longest_prompt)
        limits = Limits(
            prefill_sequences=setting.prefill_micro_batch,
            prefill_tokens=setting.max_prefill_tokens,
            decode_sequences=setting.decode_micro_batch,
            num_lanes=setting.num_lanes,
            prefills_in_flight=len(self.stages) + 1,
        )
        return run(self.times, len(self.stages), limits, self.cost.problem.workload)


def flexgen(cost: CostModel, name: str) -> OffloadPipeline:
    """The fastest policy: layers split evenly over all devices, as FlexGen's pipeline parallelism has it (section 4.4).

    Batch sizes are enumerated and shares chosen by a linear program for each stage, as in the paper (section 4.3).

    Raises:
        PreconditionError: Host memory or links are not known (NOT_AVAILABLE), the options do not allow the scheme, or
            the model is too large for devices and hosts together (DOES_NOT_FIT).
    """
    _check(cost, name)
    precision = LayerPrecision(SCHEMES[name])
    found = (_pipeline(cost, precision, policy) for policy in _policies(cost))
    possible = (pipeline for pipeline in found if pipeline)
    best = min(possible, key=lambda pipeline: pipeline.plan().estimate.total_s, default=None)
    if best is None:
        raise PreconditionError(
            f"The model does not fit devices and host memory together at {precision.scheme}.",
            reason="DOES_NOT_FIT",
            subject="problem.devices",
        )
    return best


def _check(cost: CostModel, name: str) -> None:
    for device in cost.devices.values():
        if not device.host_memory_bytes or not device.host_link_bytes_per_s:
            raise PreconditionError(
                f"{name} is not available: host memory or its link to device {device.device_id} is not known. It is "
                "only compared with where a catalog or cluster file gives both.",
                reason="NOT_AVAILABLE",
                subject=device.device_id,
            )
    options, scheme = cost.problem.options, SCHEMES[name]
    if options.usable_schemes and scheme not in options.usable_schemes:
        raise PreconditionError(
            f"{name} stores weights at {scheme}, which is not allowed.",
            reason="NOT_AVAILABLE",
            subject="allowed_schemes",
        )
    if options.quality_budget is not None and step_omega(scheme) > options.quality_budget:
        raise PreconditionError(
            f"{name} has a quality loss of {step_omega(scheme):.6g}, over the budget of {options.quality_budget:g}.",
            reason="QUALITY_BUDGET_INFEASIBLE",
            subject="problem.options.quality_budget",
        )


def _policies(cost: CostModel) -> Iterator[Policy]:
    """Blocks in flight from one to one more than devices; blocks and their batches by halves."""
    num_requests = cost.workload.num_requests
    for num_blocks in range(1, min(len(cost.devices) + 1, num_requests) + 1):
        for block in halvings(-(-num_requests // num_blocks)):
            for device_batch in halvings(block):
                yield Policy(device_batch, -(-block // device_batch), num_blocks)


def _pipeline(cost: CostModel, precision: LayerPrecision, policy: Policy) -> OffloadPipeline | None:
    schedule = _schedule(cost, policy)
    device_ids = tuple(cost.devices)[: cost.shape.num_layers]
    splits = even(range(cost.shape.num_layers), len(device_ids))
    stages = tuple(
        OffloadingStage(
            cost,
            device_id,
            precision,
            split[0],
            len(split),
            is_first=device_id == device_ids[0],
            is_last=device_id == device_ids[-1],
            policy=policy,
        )
        for device_id, split in zip(device_ids, splits, strict=True)
    )
    shares = _chosen(stages, schedule)
    return OffloadPipeline(cost, stages, shares, policy) if shares else None


def _chosen(stages: Sequence[OffloadingStage], schedule: Schedule) -> tuple[Shares, ...] | None:
    """The shares of each stage, those of like stages chosen once; None if one does not fit."""
    chosen: list[Shares] = []
    for number, stage in enumerate(stages):
        like = next((other for other in range(number) if _alike(stages[other], stage)), None)
        shares = stage.choose(schedule) if like is None else chosen[like]
        if shares is None:
            return None
        chosen.append(shares)
    return tuple(chosen)


def _alike(one: OffloadingStage, other: OffloadingStage) -> bool:
    like_places = (one.num_layers, one.is_first, one.is_last) == (other.num_layers, other.is_first, other.is_last)
    return like_places and profiles_alike(one.cost.devices[one.device_id], one.cost.devices[other.device_id])


def _schedule(cost: CostModel, policy: Policy) -> Schedule:
    return Schedule.of(cost.workload, policy.setting(cost.workload.longest_prompt))
