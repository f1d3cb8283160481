"""The cost model: memory and time of any plan, from the fitted latencies of the devices and the workload."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from llmpq.device import DeviceProfile, Phase
from llmpq.errors import DoesNotFitError, InvalidInputError
from llmpq.frames import hidden_row_bytes, max_frame_rows
from llmpq.plan import Plan, PlanEstimate, PlanningProblem, StagePlan
from planner_svc.latency import DeviceLatency
from planner_svc.memory import stage_memory
from planner_svc.quality import omega_matrix
from planner_svc.schedule import Schedule, Setting
from planner_svc.workload import Load, Workload

#: Bytes of a token id: what the first stage receives instead of hidden states.
_TOKEN_BYTES = 4
SECONDS_PER_HOUR = 3600
#: Measured links that differ by less than this factor count as equal.
_ALIKE_LINKS = 2.0


@dataclass(frozen=True)
class StageTimes:
    """Seconds of each server of the pipeline in one phase: stages, and the links that lead to them.

    LLM-PQ takes max(compute, link) for a stage. That holds for how often micro-batches can follow one another, and
    this class keeps it; but a token that goes round waits for both, so the sum has both.
    """

    compute_s: tuple[float, ...]
    link_s: tuple[float, ...]

    @property
    def total_s(self) -> float:
        """Time of one micro-batch through all servers."""
        return sum(self.compute_s) + sum(self.link_s)

    @property
    def slowest_s(self) -> float:
        """Time of the slowest server."""
        return max(*self.compute_s, *self.link_s)


class CostModel:
    """Prices plans for one problem.

    Args:
        problem: A problem that `validation.check_problem` has passed.

    Raises:
        InvalidInputError: A device lacks latency points.
    """

    def __init__(self, problem: PlanningProblem) -> None:
        self.problem = problem
        self.shape = problem.shape
        self.workload = Workload.of(problem.workload)
        self.devices = {profile.device_id: profile for profile in problem.devices}
        self.latencies = {
            profile.device_id: DeviceLatency().fit(profile, f"problem.devices[{number}]")
            for number, profile in enumerate(problem.devices)
        }
        self._predict = lru_cache(maxsize=None)(self._predict_layer)

    def max_frame_rows(self, device_ids: Sequence[str]) -> int:
        """Rows of hidden states that a frame between these devices may have; at least 1."""
        widest = max(self.devices[device_id].description.activation_bytes for device_id in device_ids)
        return max_frame_rows(self.shape.hidden_size * widest)

    def layer_s(self, device_id: str, scheme: str, phase: Phase, load: Load) -> float:
        """Seconds of one layer."""
        return self._predict(device_id, scheme, phase, load)

    def outside_s(self, device_id: str, load: Load, *, is_first: bool, is_last: bool) -> float:
        """Seconds outside the layers: the frame; embedding on the first stage; norm, head and sampling on the last."""
        return self.latencies[device_id].outside_s(load, is_first=is_first, is_last=is_last)

    def link_s(self, sender_id: str | None, receiver_id: str, load: Load) -> float:
        """Seconds to hand a micro-batch to a stage: latency + bytes / bandwidth.

        The first stage receives token ids, from the coordinator (`sender_id` is None); others hidden states.
        """
        link = self.devices[receiver_id].link_from(sender_id or "")
        row_bytes = _TOKEN_BYTES
        if sender_id is not None:
            row_bytes = hidden_row_bytes(
                self.shape.hidden_size,
                self.devices[sender_id].description.activation_bytes,
                is_int8=self.problem.options.has_int8_activations,
            )
        return link.transfer_s(load.num_rows * row_bytes)

    def stage_times(self, stages: Sequence[StagePlan], phase: Phase, load: Load) -> StageTimes:
        """Seconds of each stage and link of a pipeline."""
        last = len(stages) - 1
        senders = (None, *(stage.device_id for stage in stages[:-1]))
        return StageTimes(
            tuple(
                self.outside_s(stage.device_id, load, is_first=number == 0, is_last=number == last)
                + sum(self.layer_s(stage.device_id, layer.scheme, phase, load) for layer in stage.layers)
                for number, stage in enumerate(stages)
            ),
            tuple(self.link_s(sender, stage.device_id, load) for sender, stage in zip(senders, stages, strict=True)),
        )

    def evaluate(self, plan: Plan) -> Plan:
        """Fills in memory, times, estimate and hash; keeps the estimate's gap and solve_s.

        Raises:
            DoesNotFitError: A stage takes more memory than its device's budget.
            InvalidInputError: A layer has a scheme that its device has no points for.
        """
        schedule = Schedule.of(self.workload, Setting.of(plan))
        prefill = self.stage_times(plan.stages, Phase.PREFILL, schedule.prefill_load)
        decode = self.stage_times(plan.stages, Phase.DECODE, schedule.decode_load)
        prefill_s = schedule.prefill_s(prefill.total_s, prefill.slowest_s)
        decode_s = schedule.decode_s(decode.total_s, decode.slowest_s)
        total_s = prefill_s + decode_s
        repeated = replace(schedule, is_repeated=True)
        period_s = repeated.prefill_s(prefill.total_s, prefill.slowest_s)
        period_s += repeated.decode_s(decode.total_s, decode.slowest_s)
        estimate = PlanEstimate(
            total_s=total_s,
            prefill_s=prefill_s,
            decode_s=decode_s,
            throughput_tokens_per_s=self.workload.output_tokens / total_s if total_s else 0.0,
            quality_loss=self.quality_loss(plan),
            gap=plan.estimate.gap,
            solve_s=plan.estimate.solve_s,
            period_s=period_s,
            cost_usd=total_s * self.usd_per_s([stage.device_id for stage in plan.stages]),
        )
        return replace(plan, stages=self._with_figures(plan, schedule), estimate=estimate).with_hash()

    def usd_per_s(self, device_ids: Sequence[str]) -> float:
        """Price of these devices for a second."""
        return sum(self.devices[device_id].usd_per_h for device_id in device_ids) / SECONDS_PER_HOUR

    def quality_loss(self, plan: Plan) -> float:
        """Sum of omega over the plan's layers."""
        used = [layer.scheme for stage in plan.stages for layer in stage.layers]
        schemes = sorted(set(used))
        omega = omega_matrix(self.problem.sensitivities, self.shape.num_layers, schemes)
        return float(sum(omega[layer, schemes.index(scheme)] for layer, scheme in enumerate(used)))

    def _with_figures(self, plan: Plan, schedule: Schedule) -> tuple[StagePlan, ...]:
        prefill = self.stage_times(plan.stages, Phase.PREFILL, schedule.full_prefill_load)
        decode = self.stage_times(plan.stages, Phase.DECODE, schedule.full_decode_load)
        stages = []
        for number, stage in enumerate(plan.stages):
            memory = stage_memory(
                self.shape,
                self.devices[stage.device_id].description,
                stage.layers,
                is_first=number == 0,
                is_last=number == len(plan.stages) - 1,
                num_slots=plan.num_slots,
                max_sequence_tokens=plan.max_sequence_tokens,
                max_prefill_tokens=plan.max_prefill_tokens,
                has_int8_kv_cache=plan.has_int8_kv_cache,
            )
            short_bytes = memory.used_bytes - memory.budget_bytes
            if short_bytes > 0:
                what = f"Stage {number} (layers {stage.first_layer} to {stage.end_layer - 1})"
                raise DoesNotFitError.on_device(stage.device_id, what, short_bytes)
            prefill_ms, decode_ms = prefill.compute_s[number] * 1e3, decode.compute_s[number] * 1e3
            stages.append(replace(stage, memory=memory, prefill_ms=prefill_ms, decode_ms=decode_ms))
        return tuple(stages)

    def _predict_layer(self, device_id: str, scheme: str, phase: Phase, load: Load) -> float:
        model = self.latencies[device_id].layers_.get((scheme, phase))
        if model is None:
            raise InvalidInputError(
                f"Device {device_id} has no latency points for {scheme} layers. Profile it for this scheme.",
                reason="NO_LATENCY_POINTS",
                subject="plan.stages.layers.scheme",
            )
        return model.predict(load)


def profiles_alike(one: DeviceProfile, other: DeviceProfile) -> bool:
    """Whether two devices are the same but for their names, and links that differ less than measuring does."""
    unlinked = {"device_id": "", "links": (), "link_latency_ns": 0, "link_bytes_per_s": 0}
    links = [(found.link_latency_ns, found.link_bytes_per_s) for found in (one, other)]
    are_links_alike = all(max(pair) <= _ALIKE_LINKS * min(pair) for pair in zip(*links, strict=True))
    return are_links_alike and {**vars(one), **unlinked} == {**vars(other), **unlinked}
