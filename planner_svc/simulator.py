"""A batch in simulated time: the coordinator's own scheduler; stages and links as fast as the cost model says.

The closed formulas of `timeline` price thousands of candidates; they take means over micro-batches and add decoding to
prefilling. Here every micro-batch is its own, so lanes that start while others are still prefilled, slots that are
refilled one by one, and the thin tail of a batch of unlike lengths count as they happen.
"""

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush

from llmpq.comparison import Simulation
from llmpq.device import Phase
from llmpq.frames import Sampling
from llmpq.plan import LengthBucket, Plan
from llmpq.schedule.scheduler import Limits, MicroBatch, Scheduler
from llmpq.schedule.sequence import Sequence as TokenSequence
from planner_svc.cost import CostModel, StageTimes
from planner_svc.workload import Load

#: Requests come in an order that has nothing to do with their lengths, the same in every simulation.
_ORDER_SEED = 0


#: Beyond so many generated tokens a simulation would take minutes.
MAX_OUTPUT_TOKENS = 5 * 10**6

#: Seconds of each server of a pipeline for a micro-batch.
Times = Callable[[Phase, Load], StageTimes]


@dataclass(frozen=True)
class Run:
    """What a simulated run came to; every figure is simulated.

    Attributes:
        total_s: From the first micro-batch to the last result.
        prefill_s: Until the last prefill micro-batch came back.
        output_tokens: Tokens generated.
        busy_s: (stages) time that each stage computed.
        num_micro_batches: Frames sent.
    """

    total_s: float
    prefill_s: float
    output_tokens: int
    busy_s: tuple[float, ...]
    num_micro_batches: int

    @property
    def simulation(self) -> Simulation:
        """The figures that are reported."""
        ratios = tuple(busy_s / self.total_s for busy_s in self.busy_s) if self.total_s else ()
        rate = self.output_tokens / self.total_s if self.total_s else 0.0
        return Simulation(self.total_s, self.prefill_s, rate, ratios)


def simulate(cost: CostModel, plan: Plan) -> Run:
    """Runs the workload of a cost model's problem under a plan, in simulated time.

    Args:
        cost: Of the problem; has latencies for the plan's devices and schemes.
        plan: The plan; its estimate is ignored.
    """
    times = partial(cost.stage_times, plan.stages)
    return run(times, len(plan.stages), Limits.of_plan(plan), cost.problem.workload)


def simulation_of(cost: CostModel, plan: Plan) -> Simulation | None:
    """The reported figures of a simulated run; None where the workload is too long for one."""
    return simulate(cost, plan).simulation if cost.workload.output_tokens <= MAX_OUTPUT_TOKENS else None


def run(times: Times, num_stages: int, limits: Limits, workload: Sequence[LengthBucket]) -> Run:
    """Runs a workload under the scheduler's limits through a pipeline whose servers take these times."""
    scheduler = Scheduler(limits, _sequences(workload))
    pipeline = _Pipeline(times, num_stages)
    in_flight: list[tuple[float, int, MicroBatch]] = []
    now_s = prefill_s = 0.0
    output_tokens = num_micro_batches = 0
    while not scheduler.is_done:
        while micro_batch := scheduler.next_micro_batch():
            num_micro_batches += 1
            heappush(in_flight, (pipeline.send(micro_batch, now_s), micro_batch.frame_id, micro_batch))
        now_s, frame_id, micro_batch = heappop(in_flight)
        scheduler.record(frame_id, (0,) * micro_batch.num_results)
        output_tokens += sum(piece.emits for piece in micro_batch.pieces)
        if micro_batch.phase is Phase.PREFILL:
            prefill_s = now_s
    return Run(now_s, prefill_s, output_tokens, tuple(pipeline.busy_s), num_micro_batches)


class _Pipeline:
    """Links and stages in a row, each serving micro-batches one after another in the order in which they come.

    All micro-batches take the same way, so none overtakes another, and when one is sent it is already known when it
    will have passed each server.
    """

    def __init__(self, times: Times, num_stages: int) -> None:
        self.busy_s = [0.0] * num_stages
        self._times = times
        self._free_s = [0.0] * (2 * num_stages)

    def send(self, micro_batch: MicroBatch, now_s: float) -> float:
        """The time at which a micro-batch sent now comes back."""
        times = self._times(micro_batch.phase, _load_of(micro_batch))
        at_s = now_s
        for number, (link_s, compute_s) in enumerate(zip(times.link_s, times.compute_s, strict=True)):
            for server, service_s in ((2 * number, link_s), (2 * number + 1, compute_s)):
                at_s = max(at_s, self._free_s[server]) + service_s
                self._free_s[server] = at_s
            self.busy_s[number] += compute_s
        return at_s


def _sequences(workload: Sequence[LengthBucket]) -> list[TokenSequence]:
    """A sequence for each request; the tokens themselves do not matter."""
    lengths = [(bucket.prompt_tokens, bucket.output_tokens) for bucket in workload for _ in range(bucket.count)]
    random.Random(_ORDER_SEED).shuffle(lengths)  # noqa: S311 not for secrets
    prompts = {prompt_tokens: array("i", bytes(4 * prompt_tokens)) for prompt_tokens, _ in lengths}
    return [
        TokenSequence(number, prompts[prompt_tokens], output_tokens, Sampling(), is_complete=lambda _: False)
        for number, (prompt_tokens, output_tokens) in enumerate(lengths)
    ]


def _load_of(micro_batch: MicroBatch) -> Load:
    rows = sum(piece.count for piece in micro_batch.pieces)
    pairs = sum(piece.count * (piece.start + piece.count) for piece in micro_batch.pieces)
    return Load(len(micro_batch.pieces), rows, pairs)
