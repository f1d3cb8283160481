"""Micro-batch sizes, and what they make of a workload: how many micro-batches, and how much work in each."""

from dataclasses import dataclass

from llmpq.plan import Plan
from planner_svc.timeline import Weights, closed_loop_weights, open_loop_weights
from planner_svc.workload import Load, Workload


@dataclass(frozen=True)
class Setting:
    """The micro-batch sizes that the search enumerates.

    Attributes:
        prefill_micro_batch: eta, in sequences.
        decode_micro_batch: xi, in sequences.
        num_lanes: mu, decode micro-batches in flight.
        max_prefill_tokens: Rows of a prefill frame at most; longer prompts are cut.
    """

    prefill_micro_batch: int
    decode_micro_batch: int
    num_lanes: int
    max_prefill_tokens: int

    @classmethod
    def of(cls, plan: Plan) -> "Setting":
        """The setting of a plan."""
        return cls(plan.prefill_micro_batch, plan.decode_micro_batch, plan.num_lanes, plan.max_prefill_tokens)

    @property
    def num_slots(self) -> int:
        """Sequences in the KV cache."""
        return self.num_lanes * self.decode_micro_batch


@dataclass(frozen=True)
class Schedule:
    """A workload cut into micro-batches. Layer times are linear in the load, so means over micro-batches are exact.

    Attributes:
        num_frames: Prefill frames: micro-batches, or chunks where prompts are longer than a frame.
        num_lanes: Lanes that have anything to do.
        num_rounds: Decode rounds.
        prefill_load: Mean load of a prefill frame.
        decode_load: Mean load of a decode micro-batch: lanes are not full to the end.
        full_prefill_load: Load of a full prefill micro-batch of mean prompts.
        full_decode_load: Load of a full decode micro-batch at the mean cached length.
        is_repeated: Whether such batches follow one another without a pause; times are then what one adds.
    """

    num_frames: int
    num_lanes: int
    num_rounds: int
    prefill_load: Load
    decode_load: Load
    full_prefill_load: Load
    full_decode_load: Load
    is_repeated: bool = False

    @classmethod
    def of(cls, workload: Workload, setting: Setting) -> "Schedule":
        """Cuts a workload.

        Freed slots are refilled, so the number of rounds follows from all requests and all slots, see
        `Workload.num_rounds`.
        """
        requests = workload.num_requests
        sequences = min(setting.prefill_micro_batch, setting.num_slots)
        num_frames = workload.num_prefill_frames(sequences, setting.max_prefill_tokens)
        share = min(setting.decode_micro_batch, _ceil(requests, setting.num_lanes))  # the scheduler deals evenly
        num_lanes = min(setting.num_lanes, _ceil(requests, share))
        num_rounds = workload.num_rounds(min(setting.num_slots, requests))
        occupancy = workload.decode_steps / (num_lanes * num_rounds) if num_rounds else 0.0
        full_prefill = min(sequences, setting.max_prefill_tokens / workload.mean_prompt_tokens)
        return cls(
            num_frames=num_frames,
            num_lanes=num_lanes,
            num_rounds=num_rounds,
            prefill_load=workload.prefill_load(requests / num_frames),
            decode_load=workload.decode_load(occupancy),
            full_prefill_load=workload.prefill_load(full_prefill),
            full_decode_load=workload.decode_load(setting.decode_micro_batch),
        )

    @property
    def prefill_weights(self) -> Weights:
        """What the sum and the slowest server count for in the time of all prefill frames."""
        return open_loop_weights(self.num_frames, is_repeated=self.is_repeated)

    @property
    def decode_weights(self) -> tuple[Weights, Weights]:
        """The same of all decode rounds, of which the larger branch holds; see `timeline`."""
        return closed_loop_weights(self.num_lanes, self.num_rounds, is_repeated=self.is_repeated)

    def prefill_s(self, total_s: float, slowest_s: float) -> float:
        """Time of all prefill frames; arguments as in `timeline`."""
        return _weighted(self.prefill_weights, total_s, slowest_s)

    def decode_s(self, total_s: float, slowest_s: float) -> float:
        """Time of all decode rounds; arguments as in `timeline`."""
        return max(_weighted(weights, total_s, slowest_s) for weights in self.decode_weights)


def _weighted(weights: Weights, total_s: float, slowest_s: float) -> float:
    return weights[0] * total_s + weights[1] * slowest_s


def _ceil(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
