"""Traces: clocks, how stages spend their time, and the events that Perfetto reads."""

import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from fake_coordinator import FakeCoordinator
from terminal import Terminal

from llmpq.device import Phase
from llmpq.frames import StageTiming
from llmpq.messages import to_message
from llmpq.trace import FrameTrace, aligned, clock_offsets_ns, stage_times, transits_ns
from llmpq.trace_events import trace_document
from llmpq.v1 import coordinator_service_pb2 as pb

MS = 1_000_000


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """An input file of one request."""
    path = tmp_path / "in.jsonl"
    request = {"custom_id": "r", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi"}}
    path.write_text(json.dumps(request) + "\n")
    return path


def frame(frame_id: int, sent: int, stages: list[tuple[int, int, int]], received: int, **fields: object) -> FrameTrace:
    """A frame with (arrived, started, ended) in each stage; all times in milliseconds of one clock."""
    timings = tuple(
        StageTiming(stage, (started - arrived) * MS, (ended - started) * MS, started * MS)
        for stage, (arrived, started, ended) in enumerate(stages)
    )
    values = {"phase": Phase.DECODE, "num_sequences": 2, "num_rows": 2, "num_results": 2} | fields
    return FrameTrace(frame_id, sent_unix_ns=sent * MS, received_unix_ns=received * MS, timings=timings, **values)  # type: ignore[arg-type]


#: The second frame arrives at stage 0 while it computes the first, which is sent from 10 to 12.
FRAMES = [
    frame(0, 0, [(1, 1, 10), (12, 12, 20)], 21, phase=Phase.PREFILL),
    frame(1, 2, [(3, 12, 15), (16, 20, 30)], 31),
    frame(2, 31, [(32, 33, 40), (41, 42, 45)], 46),
]


def shifted(frames: list[FrameTrace], offsets_ms: list[int]) -> list[FrameTrace]:
    """The same frames as stages with clocks that are ahead by so much report them."""
    return [
        replace(
            one,
            timings=tuple(
                replace(timing, start_unix_ns=timing.start_unix_ns + ahead * MS)
                for timing, ahead in zip(one.timings, offsets_ms, strict=True)
            ),
        )
        for one in frames
    ]


def test_time_is_divided_into_computing_and_two_kinds_of_waiting() -> None:
    """A gap before the next frame has arrived is waiting for input, the rest of it waiting for output."""
    first, second = stage_times(FRAMES)

    assert (first.prefill, first.decode, first.input, first.output) == (9 * MS, 10 * MS, 17 * MS, 3 * MS)
    assert (second.prefill, second.decode, second.input, second.output) == (8 * MS, 13 * MS, 11 * MS, 1 * MS)
    assert first.total == (40 - 1) * MS


def test_clocks_that_agree_are_left_alone() -> None:
    """Where no frame seems to arrive before it left there is nothing to align."""
    assert clock_offsets_ns(FRAMES) == [0, 0]
    assert aligned(FRAMES) == FRAMES


@pytest.mark.parametrize("offsets", [[5000, -7000], [-3, 0], [0, 40]])
def test_clocks_that_differ_are_aligned_to_within_a_round(offsets: list[int]) -> None:
    """After alignment no frame is quicker than light, and each clock is right to within the sum of the hops."""
    found = aligned(shifted(FRAMES, offsets))

    ring = sum(min(hop) for hop in zip(*map(transits_ns, FRAMES), strict=True))
    assert all(transit >= 0 for one in found for transit in transits_ns(one))
    for one, true in zip(found, FRAMES, strict=True):
        for timing, expected in zip(one.timings, true.timings, strict=True):
            assert abs(timing.start_unix_ns - expected.start_unix_ns) <= ring


def test_a_trace_is_what_perfetto_reads() -> None:
    """Slices of a track are in order and never overlap; spans and flows are begun and ended; tracks have names."""
    document = json.loads(json.dumps(trace_document(shifted(FRAMES, [0, 900]), ["fast", "slow"])))

    events = document["traceEvents"]
    tracks = defaultdict(list)
    for event in events:
        assert event["ph"] in {"X", "b", "e", "s", "f", "M"}
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] != "M":
            assert event["ts"] >= 0
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append(event)
    assert len(tracks) == 2
    for slices in tracks.values():
        assert all(one["dur"] > 0 for one in slices)
        for before, after in pairwise(slices):
            assert before["ts"] + before["dur"] == pytest.approx(after["ts"])  # no overlap, and no hole
    begun, ended = ({e["id"] for e in events if e["ph"] == kind} for kind in "be")
    assert begun == ended == {0, 1, 2}
    assert {e["id"] for e in events if e["ph"] == "s"} == {e["id"] for e in events if e["ph"] == "f"} == {0, 1, 2}
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {0: "coordinator", 1: "stage 0: fast", 2: "stage 1: slow"}


def test_stamps_that_cross_do_not_overlap() -> None:
    """A frame that starts before the one before has ended by its own stamps cuts that one short."""
    crossing = [FRAMES[0], frame(1, 2, [(3, 9, 15), (16, 20, 30)], 31)]

    slices = [e for e in trace_document(crossing, ["a", "b"])["traceEvents"] if e["ph"] == "X" and e["pid"] == 1]

    assert [(one["ts"], one["dur"]) for one in slices] == [(1000.0, 8000.0), (9000.0, 6000.0)]


def test_an_empty_trace_is_a_trace() -> None:
    """A batch none of whose frames is back yet has names of tracks and nothing else."""
    assert {event["ph"] for event in trace_document([], ["one"])["traceEvents"]} == {"M"}
    assert stage_times([]) == []


def test_a_trace_is_shown_and_written(
    terminal: Terminal, background_coordinator: FakeCoordinator, prompts: Path, tmp_path: Path
) -> None:
    """The table divides each stage's time; the file opens in Perfetto; the keys of the document are stable."""
    background_coordinator.frames = [to_message(one, pb.FrameTrace) for one in FRAMES]
    address = background_coordinator.address
    run = ("--coordinator", address, "--model", "m", "-o", tmp_path / "out.jsonl", "--json")
    batch_id = json.loads(terminal.run("run-batch", "-i", prompts, *run).out)["batch_id"]

    shown = terminal.run("trace", batch_id, "--coordinator", address, "-o", tmp_path / "trace.json")
    document = json.loads(terminal.run("trace", batch_id, "--coordinator", address, "--json").out)

    assert shown.status == 0
    assert "fast" in shown.out
    assert json.loads((tmp_path / "trace.json").read_text()) == trace_document(FRAMES, ["fast", "slow"])
    assert document["frames"] == 3
    assert document["wall_s"] == pytest.approx(0.046)
    assert document["hops_ms"] == [1.0, 1.0, 1.0]
    fast, slow = document["stages"]
    assert fast == {
        "device_id": "fast",
        "clock_moved_s": 0,
        "prefill": 0.009,
        "decode": 0.01,
        "input": 0.017,
        "output": 0.003,
    }
    assert slow["device_id"] == "slow"


def test_a_trace_of_no_batch_is_refused(terminal: Terminal, address: str) -> None:
    """The error names it."""
    outcome = terminal.run("trace", "nothing", "--coordinator", address)

    assert outcome.status == 1
    assert "nothing" in outcome.err
