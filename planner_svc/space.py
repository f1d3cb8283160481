"""The search space of one problem: device orders, micro-batch sizes, and the inner problem of each combination."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import count, islice, takewhile
from math import ceil, inf

import numpy as np

from llmpq.errors import PreconditionError
from llmpq.memory import layer_bytes
from llmpq.plan import LayerPrecision, Plan, StagePlan
from llmpq.schemes import SCHEMES
from planner_svc.assignment import AssignmentProblem, Floats
from planner_svc.cost import CostModel
from planner_svc.milp import Assignment
from planner_svc.orders import Order, orders_of
from planner_svc.quality import omega_matrix
from planner_svc.schedule import Setting
from planner_svc.stage_costs import StagePricing
from planner_svc.workload import Load

#: Theta where the request sets neither weight nor budget, as a share of the least conceivable time: w4 on every layer
#: (omega 1) must save a quarter of that time. A share means the same for every model, cluster and batch; an absolute
#: number of seconds does not.
DEFAULT_THETA_SHARE = 0.25

#: Candidates that are tried at most, orders with the most devices first. Four unlike devices have about 5,000.
MAX_CANDIDATES = 8_000

#: Settings at which orders are compared where they are too many.
_NUM_SAMPLED = 3

#: Prompts are not cut into fewer rows: most devices then wait for weights instead of computing.
MIN_CUT_TOKENS = 256


@dataclass(frozen=True)
class Candidate:
    """What the search enumerates: everything but the assignment."""

    order: Order
    setting: Setting


class SearchSpace:
    """Candidates and their inner problems.

    Args:
        cost: The cost model of the problem.

    Raises:
        InvalidInputError: A sensitivity is missing.
        PreconditionError: No device can run any of the allowed schemes, or one of the given ones.
    """

    def __init__(self, cost: CostModel) -> None:
        self.cost = cost
        self.options = cost.problem.options
        self.usable = {device_id: self._usable(device_id) for device_id in cost.devices}
        self.schemes = tuple(name for name in SCHEMES if any(name in usable for usable in self.usable.values()))
        if not self.schemes:
            raise PreconditionError(
                "No device can run any of the allowed schemes and has latency points for it. Allow other schemes, or "
                "profile the devices for these.",
                reason="NO_USABLE_SCHEME",
                subject="problem.options.allowed_schemes",
            )
        self.layers_per_row = max(self.options.layers_per_group, 1)
        self.omega = self._omega()
        group_size = self.options.effective_group_size
        weight_bytes = [layer_bytes(cost.shape, _precision(scheme, group_size)) for scheme in self.schemes]
        self._pricing = StagePricing(cost, self.schemes, self.usable, weight_bytes)

    @cached_property
    def candidates(self) -> list[Candidate]:
        """The combinations of order and setting, `MAX_CANDIDATES` at most."""
        everything = (Candidate(order, setting) for order in self.orders for setting in self.settings(order))
        return list(islice(everything, MAX_CANDIDATES))

    @cached_property
    def theta_s(self) -> float:
        """Seconds that a unit of omega is worth: as asked for, none under a budget, or else `DEFAULT_THETA_SHARE`."""
        if self.options.quality_weight is not None:
            return self.options.quality_weight
        if self.options.quality_budget is not None:
            return 0.0
        return DEFAULT_THETA_SHARE * min(self._time_bounds_s)

    @cached_property
    def objective_bounds_s(self) -> list[float]:
        """For each candidate, a lower bound on time + theta * sum(omega)."""
        loss_s = self.theta_s * float(self.omega.min(axis=1).sum())
        return [time_s + loss_s for time_s in self._time_bounds_s]

    @property
    def num_rows(self) -> int:
        """What assignments are made of: layers, or groups of layers."""
        return len(self.omega)

    @property
    def has_limits(self) -> bool:
        """Whether plans that fit the memory may be refused all the same."""
        return self.options.quality_budget is not None or bool(self.options.deadline_s)

    @cached_property
    def orders(self) -> list[Order]:
        """The orders of devices that can hold a layer; see `orders_of`."""
        usable = {device_id: self.cost.devices[device_id] for device_id, schemes in self.usable.items() if schemes}
        most = min(len(usable), self.num_rows)
        return orders_of(usable, most if self.options.use_all_devices else 1, most, self._order_bound_s)

    def _order_bound_s(self, order: Order) -> float:
        """The lowest bound on the time at a few settings; infinite if the model fits at none of them."""
        settings = self.settings(order)
        some = settings[:: -(-len(settings) // _NUM_SAMPLED)]
        problems = (self._problem(Candidate(order, setting), 0.0) for setting in some)
        return min((problem.time_bound_s() for problem in problems if problem.fits()), default=inf)

    def settings(self, order: Order) -> list[Setting]:
        """Micro-batch sizes to try on a pipeline, unless the options fix them.

        - lanes: 1 to stages + 1, of more than eight only every power of two and those near the stages; more cannot
          shorten a round;
        - xi: all requests in the cache at once, or in 2, 4, 8, ... waves where memory is short; at most a frame;
        - eta: 1, 2, 4, ... up to a frame of mean prompts, and that largest number itself. Slots are to suffice for a
          frame in every stage. Where nothing is decoded and requests wait for slots, these limit the frames in flight,
          and are to suffice for one more; where none waits, they need not;
        - rows of a prefill frame: see `prefill_tokens`; only the smallest eta has prompts cut.
        """
        requests = self.cost.workload.num_requests
        max_rows = self.cost.max_frame_rows(order)
        prefill_tokens = cache(partial(self.prefill_tokens, order))
        lanes = [self.options.num_lanes] if self.options.num_lanes else _lanes(min(len(order) + 1, requests))
        settings: dict[Setting, None] = {}
        for num_lanes in lanes:
            for decode_micro_batch in self._decode_sizes(num_lanes, min(requests, max_rows)):
                slots = min(num_lanes * decode_micro_batch, requests)
                in_slots = slots // self._frames_in_flight(order, slots)
                largest = max(min(in_slots, int(max_rows / self.cost.workload.mean_prompt_tokens)), 1)
                for number, prefill_micro_batch in enumerate(self._prefill_sizes(largest)):
                    for tokens in prefill_tokens(prefill_micro_batch)[: 1 if number else None]:
                        settings[Setting(prefill_micro_batch, decode_micro_batch, num_lanes, tokens)] = None
        return list(settings)

    def _frames_in_flight(self, order: Order, slots: int) -> int:
        """Prefill frames that slots are to suffice for; see `settings`."""
        if self.cost.workload.decode_steps:
            return len(order)
        return 1 if slots == self.cost.workload.num_requests else len(order) + 1

    def prefill_tokens(self, order: Order, prefill_micro_batch: int) -> list[int]:
        """Rows that a prefill frame may have.

        Room for eta mean prompts and for the longest one whole; then halves of that, quarters, and so on, which cut
        prompts: deep pipelines fill sooner, and temporaries take less memory.
        """
        workload = self.cost.workload
        whole = max(workload.longest_prompt, ceil(prefill_micro_batch * workload.mean_prompt_tokens))
        whole = min(whole, self.cost.max_frame_rows(order))
        return [whole, *takewhile(lambda rows: rows >= MIN_CUT_TOKENS, (-(-whole // 2**k) for k in count(1)))]

    def problem(self, candidate: Candidate) -> AssignmentProblem:
        """The inner problem of a candidate."""
        return self._problem(candidate, self.theta_s)

    def plan(self, candidate: Candidate, assignment: Assignment, strategy: str) -> Plan:
        """The evaluated plan of a candidate with an assignment.

        Raises:
            DoesNotFitError: It takes more memory than there is.
        """
        group_size = self.options.effective_group_size
        stages, first_layer = [], 0
        for device_id, numbers in zip(candidate.order, assignment, strict=True):
            layers = tuple(_precision(self.schemes[number], group_size) for number in self._by_layer(numbers))
            stages.append(StagePlan(device_id, first_layer, layers))
            first_layer += len(layers)
        setting = candidate.setting
        return self.cost.evaluate(
            Plan(
                model=self.cost.problem.model,
                strategy=strategy,
                stages=tuple(stages),
                prefill_micro_batch=setting.prefill_micro_batch,
                decode_micro_batch=setting.decode_micro_batch,
                num_lanes=setting.num_lanes,
                max_sequence_tokens=self.cost.workload.max_sequence_tokens,
                max_prefill_tokens=setting.max_prefill_tokens,
                rounding=self.options.rounding,
                has_int8_kv_cache=self.options.has_int8_kv_cache,
                has_int8_activations=self.options.has_int8_activations,
            )
        )

    def objective_s(self, plan: Plan) -> float:
        """What the options ask for the least of (time, time between batches, or dollars), + theta * sum(omega)."""
        estimate = plan.estimate
        objectives = {"latency": estimate.total_s, "throughput": estimate.period_s, "cost": estimate.cost_usd}
        return objectives[self.options.effective_objective] + self.theta_s * estimate.quality_loss

    @cached_property
    def _time_bounds_s(self) -> list[float]:
        return [self._problem(candidate, 0.0).time_bound_s() for candidate in self.candidates]

    def _usable(self, device_id: str) -> frozenset[str]:
        """Schemes that are allowed, that the device can run and that it has points for."""
        description = self.cost.devices[device_id].description
        allowed = self.options.usable_schemes or tuple(SCHEMES)
        return self.cost.latencies[device_id].schemes & set(description.schemes) & set(allowed)

    def _by_layer(self, numbers: Sequence[int]) -> Iterator[int]:
        """The scheme of each layer, of the schemes of a stage's layers or groups."""
        return (number for number in numbers for _ in range(self.layers_per_row))

    def _omega(self) -> Floats:
        """(layers or groups, schemes) omega, infinite where the options give the layer another scheme."""
        omega = omega_matrix(self.cost.problem.sensitivities, self.cost.shape.num_layers, self.schemes)
        omega = np.asarray(omega.reshape(-1, self.layers_per_row, len(self.schemes)).sum(axis=1))
        given = np.array(self.options.layer_schemes)
        if not given.size:
            return omega
        if not set(self.options.layer_schemes) <= set(self.schemes):
            raise cannot_run_given_schemes()
        return np.where(given[:, None] == np.array(self.schemes), omega, np.inf)

    def _decode_sizes(self, num_lanes: int, most: int) -> list[int]:
        if self.options.decode_micro_batch:
            return [self.options.decode_micro_batch]
        largest = min(-(-self.cost.workload.num_requests // num_lanes), most)
        return [-(-largest // 2**halvings) for halvings in range(largest.bit_length() + 1)]

    def _prefill_sizes(self, largest: int) -> list[int]:
        if self.options.prefill_micro_batch:
            return [self.options.prefill_micro_batch]
        return [*(2**power for power in range(largest.bit_length()) if 2**power < largest), largest]

    def _problem(self, candidate: Candidate, theta_s: float) -> AssignmentProblem:
        order, setting = candidate.order, candidate.setting
        objective = self.options.effective_objective
        schedule = self._pricing.schedule(setting)
        price = self.cost.usd_per_s(order) if objective == "cost" else 1.0
        per_row = self.layers_per_row
        last = len(order) - 1
        stages = [
            self._pricing.stage(device_id, setting, is_first=number == 0, is_last=number == last)
            for number, device_id in enumerate(order)
        ]
        return AssignmentProblem(
            layer_prefill_s=price * per_row * np.array([stage.layer_prefill_s for stage in stages]),
            layer_decode_s=price * per_row * np.array([stage.layer_decode_s for stage in stages]),
            outside_prefill_s=price * np.array([stage.outside_prefill_s for stage in stages]),
            outside_decode_s=price * np.array([stage.outside_decode_s for stage in stages]),
            link_prefill_s=price * self._link_s(order, schedule.prefill_load),
            link_decode_s=price * self._link_s(order, schedule.decode_load),
            deadline_s=price * self.options.deadline_s if self.options.deadline_s else None,
            layer_bytes=per_row * np.array([stage.layer_bytes for stage in stages]),
            capacity_bytes=np.array([stage.capacity_bytes for stage in stages]),
            omega=self.omega,
            theta_s=theta_s,
            quality_budget=self.options.quality_budget,
            schedule=schedule,
        )

    def _link_s(self, order: Order, load: Load) -> Floats:
        senders = (None, *order[:-1])
        return np.array([self._pricing.link_s(*ends, load) for ends in zip(senders, order, strict=True)])


def cannot_run_given_schemes() -> PreconditionError:
    """The error where no pipeline of the devices has for each layer a stage that can run the scheme given to it."""
    return PreconditionError(
        "No pipeline of the devices can run every layer at the scheme given to it. Give others, or add a device.",
        reason="NO_USABLE_SCHEME",
        subject="problem.options.layer_schemes",
    )


def _precision(scheme: str, group_size: int) -> LayerPrecision:
    return LayerPrecision(scheme, group_size if SCHEMES[scheme].is_grouped else 0)


def _lanes(most: int) -> list[int]:
    return [lanes for lanes in range(1, most + 1) if lanes <= 8 or lanes.bit_count() == 1 or lanes > most - 3]  # noqa: PLR2004 see `settings`
