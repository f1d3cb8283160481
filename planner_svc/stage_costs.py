"""What a device costs at a place of the pipeline: a row of the inner problem, made once for thousands of candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from llmpq.device import Phase
from llmpq.memory import kv_bytes
from planner_svc.assignment import Floats
from planner_svc.cost import CostModel
from planner_svc.memory import stage_memory
from planner_svc.program_data import TOLERANCE
from planner_svc.schedule import Schedule, Setting
from planner_svc.workload import Load


@dataclass(frozen=True)
class StageCosts:
    """See `AssignmentProblem`, of which this is a row.

    Attributes:
        layer_prefill_s, layer_decode_s: (schemes) seconds of a layer.
        outside_prefill_s, outside_decode_s: Seconds of embedding and head.
        layer_bytes: (schemes) bytes of one layer with its KV cache.
        capacity_bytes: Budget less everything but the layers, and less the solver's tolerance; may be negative.
    """

    layer_prefill_s: Floats
    layer_decode_s: Floats
    outside_prefill_s: float
    outside_decode_s: float
    layer_bytes: Floats
    capacity_bytes: float


class StagePricing:
    """Prices stages, each once: a device costs the same wherever it is in the middle of a pipeline.

    Args:
        cost: The cost model.
        schemes: All that are considered.
        usable: Those that each device may use.
        weight_bytes: Of a layer at each scheme.
    """

    def __init__(
        self,
        cost: CostModel,
        schemes: Sequence[str],
        usable: Mapping[str, frozenset[str]],
        weight_bytes: Sequence[int],
    ) -> None:
        self._cost = cost
        self._schemes = schemes
        self._usable = usable
        self._weight_bytes = np.array(weight_bytes, dtype=float)
        self.schedule = cache(self._schedule)
        self.stage = cache(self._stage)
        self.link_s = cache(cost.link_s)

    def _schedule(self, setting: Setting) -> Schedule:
        is_repeated = self._cost.problem.options.effective_objective == "throughput"
        return replace(Schedule.of(self._cost.workload, setting), is_repeated=is_repeated)

    def _stage(self, device_id: str, setting: Setting, *, is_first: bool, is_last: bool) -> StageCosts:
        cost, schedule = self._cost, self.schedule(setting)
        description, is_int8 = cost.devices[device_id].description, cost.problem.options.has_int8_kv_cache
        cache_bytes = kv_bytes(
            cost.shape,
            num_layers=1,
            num_slots=setting.num_slots,
            max_sequence_tokens=cost.workload.max_sequence_tokens,
            activation_bytes=description.activation_bytes,
            is_int8=is_int8,
        )
        memory = stage_memory(
            cost.shape,
            description,
            (),
            is_first=is_first,
            is_last=is_last,
            num_slots=setting.num_slots,
            max_sequence_tokens=cost.workload.max_sequence_tokens,
            max_prefill_tokens=setting.max_prefill_tokens,
            has_int8_kv_cache=is_int8,
        )
        free = float(memory.budget_bytes - memory.used_bytes)
        return StageCosts(
            layer_prefill_s=self._layer_s(device_id, Phase.PREFILL, schedule.prefill_load),
            layer_decode_s=self._layer_s(device_id, Phase.DECODE, schedule.decode_load),
            outside_prefill_s=cost.outside_s(device_id, schedule.prefill_load, is_first=is_first, is_last=is_last),
            outside_decode_s=cost.outside_s(device_id, schedule.decode_load, is_first=is_first, is_last=is_last),
            layer_bytes=self._weight_bytes + cache_bytes,
            capacity_bytes=free - TOLERANCE * abs(free),
        )

    def _layer_s(self, device_id: str, phase: Phase, load: Load) -> Floats:
        usable = self._usable[device_id]
        return np.array(
            [
                self._cost.layer_s(device_id, scheme, phase, load) if scheme in usable else np.inf
                for scheme in self._schemes
            ]
        )
