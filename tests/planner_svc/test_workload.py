"""What a histogram comes to."""

import heapq

import pytest

from llmpq.plan import LengthBucket
from llmpq.schedule.scheduler import Limits
from planner_svc.cost import StageTimes
from planner_svc.schedule import Schedule, Setting
from planner_svc.simulator import run
from planner_svc.workload import Workload


def test_equal_lengths_take_whole_waves() -> None:
    """With equal lengths, B requests on S slots take ceil(B / S) * (n - 1) rounds."""
    workload = Workload.of([LengthBucket(10, 33, 24)])
    assert [workload.num_rounds(slots) for slots in (24, 16, 12, 5)] == [32, 64, 64, 160]


def test_refilled_slots_beat_waiting_for_the_longest() -> None:
    """With unlike lengths, each request, longest first, goes to the slot that is free first."""
    workload = Workload.of([LengthBucket(10, 1 + steps, 1) for steps in (9, 8, 5, 5, 4, 3, 2)])
    busy = [0, 0, 0]
    for steps in (9, 8, 5, 5, 4, 3, 2):
        heapq.heapreplace(busy, busy[0] + steps)
    assert workload.num_rounds(3) == max(busy)


def test_cached_length_is_the_mean_over_decode_steps() -> None:
    """The first decode step of an answer finds the prompt in the cache, each later one a token more."""
    buckets = [LengthBucket(10, 4, 2), LengthBucket(100, 1, 5), LengthBucket(20, 2, 1)]
    lengths = [10, 11, 12] * 2 + [20]
    assert Workload.of(buckets).mean_cached_tokens == pytest.approx(sum(lengths) / len(lengths))


def test_answers_of_one_token_need_no_decoding() -> None:
    """The first token comes from prefill, so one token each means no rounds."""
    schedule = Schedule.of(Workload.of([LengthBucket(10, 1, 4)]), Setting(2, 2, 2, 1000))
    assert (schedule.num_rounds, schedule.num_frames) == (0, 2)


@pytest.mark.parametrize(("num_requests", "size", "num_lanes", "used"), [(5, 2, 8, 5), (5, 2, 4, 3), (32, 16, 3, 3)])
def test_requests_are_dealt_to_lanes_evenly(num_requests: int, size: int, num_lanes: int, used: int) -> None:
    """As the scheduler deals them: lanes that get none do not count, and all others hold about as many."""
    schedule = Schedule.of(Workload.of([LengthBucket(10, 5, num_requests)]), Setting(1, size, num_lanes, 1000))
    assert schedule.num_lanes == used
    assert schedule.decode_load.num_sequences == pytest.approx(num_requests / used)


def test_long_prompts_are_chunked() -> None:
    """A frame holds a limited number of tokens, so long prompts take more frames than sequences."""
    schedule = Schedule.of(Workload.of([LengthBucket(1000, 5, 4)]), Setting(4, 4, 1, 250))
    assert schedule.num_frames == 16
    assert schedule.prefill_load.num_rows == 250
    assert schedule.full_prefill_load.num_rows == 250


@pytest.mark.parametrize("prompt_tokens", [1, 50, 100, 101, 250, 512])
@pytest.mark.parametrize("num_sequences", [1, 2, 3])
def test_frames_of_equal_prompts_are_those_of_the_scheduler(prompt_tokens: int, num_sequences: int) -> None:
    """As many prefill frames are counted as the scheduler sends, whether prompts share frames or are cut."""
    bucket, max_tokens = LengthBucket(prompt_tokens, 1, 7), 100
    num_sequences = min(num_sequences, max(max_tokens // prompt_tokens, 1))
    sent = run(
        lambda _phase, _load: StageTimes((1.0,), (0.0,)), 1, Limits(num_sequences, max_tokens, 8, 1, 2), [bucket]
    )
    assert Workload.of([bucket]).num_prefill_frames(num_sequences, max_tokens) == sent.num_micro_batches
