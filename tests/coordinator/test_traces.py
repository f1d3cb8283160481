"""What the coordinator keeps of the frames of a batch."""

import pytest
from bench import Bench
from mesh import completion

from coordinator.traces import MAX_BATCHES, FrameLog, Traces
from llmpq.device import Phase
from llmpq.errors import NotFoundError
from llmpq.frames import StageTiming
from llmpq.trace import FrameTrace, transits_ns


async def test_every_frame_of_a_batch_is_traced(bench: Bench) -> None:
    """A frame is sent, passes every stage in order, and comes back; results are the tokens of the batch."""
    async with bench.running():
        await bench.add_stage("a")
        await bench.add_stage("b")
        batch, _ = await bench.run([completion(str(n), [5, 6, 7], 4) for n in range(3)], ignore_stop=True)

        frames = await bench.client.trace(batch.batch_id)

    assert batch.plan is not None
    assert {len(frame.timings) for frame in frames} == {len(batch.plan.stages)}
    assert sum(frame.num_results for frame in frames) == batch.generated_tokens
    assert sum(frame.num_rows for frame in frames) == 3 * (3 + 4 - 1)
    assert all(frame.sent_unix_ns <= frame.received_unix_ns for frame in frames)
    assert [frame.received_unix_ns for frame in frames] == sorted(frame.received_unix_ns for frame in frames)
    assert all(len(transits_ns(frame)) == len(batch.plan.stages) + 1 for frame in frames)


async def test_a_batch_that_never_ran_has_no_trace(bench: Bench) -> None:
    """The error names the batch."""
    async with bench.running():
        with pytest.raises(NotFoundError, match="0123"):
            await bench.client.trace("0123")


def test_a_frame_that_was_not_held_up_stands_for_the_others() -> None:
    """Of decode frames on their way for 1 to 8 ms it is the third; prefill frames do not count."""
    frames = FrameLog()
    for number, phase in enumerate([Phase.DECODE] * 8 + [Phase.PREFILL]):
        sent_unix_ns = number * 10**9
        way_ns = (number * 5 % 8 + 1) * 10**6
        timing = StageTiming(0, wait_ns=0, compute_ns=0, start_unix_ns=sent_unix_ns)
        frames.frames.append(FrameTrace(number, phase, 1, 1, 1, sent_unix_ns, sent_unix_ns + way_ns, (timing,)))

    found = frames.unhindered_decode

    assert found is not None
    assert sum(transits_ns(found)) == 3 * 10**6


def test_only_the_last_batches_are_kept() -> None:
    """Memory for traces is bounded; a batch that runs again counts as new."""
    traces = Traces()
    for number in range(MAX_BATCHES):
        traces.start(str(number))
    traces.start("0")
    traces.start("new")

    assert traces.frames("0") == traces.frames("new") == ()
    with pytest.raises(NotFoundError, match="'1'"):
        traces.frames("1")
