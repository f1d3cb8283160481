"""The scheduler against a pipeline of arithmetic: frames come back in order, each slot holds what was written to it."""

import random
from array import array
from collections import deque

import pytest
from fake_stage import answer, next_token, score

from llmpq.device import Phase
from llmpq.errors import InvalidInputError
from llmpq.frames import FrameOutput
from llmpq.schedule.scheduler import Limits, MicroBatch, Scheduler
from llmpq.schedule.sequence import Sequence


def _sequence(number: int, prompt_tokens: int, max_tokens: int) -> Sequence:
    prompt = array("i", ((number * 31 + place) % 50 for place in range(prompt_tokens)))
    return Sequence(number, prompt, max_tokens, sampling=None, is_complete=lambda _: False)  # type: ignore[arg-type]


class _Pipeline:
    """What stages do, with every rule about frames checked on the way."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held: dict[int, list[int]] = {}
        self.owner: dict[int, Sequence] = {}
        self.in_flight: deque[MicroBatch] = deque()
        self.sent: list[MicroBatch] = []

    def send(self, micro_batch: MicroBatch) -> None:
        self._check(micro_batch)
        for piece in micro_batch.pieces:
            owner = self.owner.setdefault(piece.slot, piece.sequence)
            if owner is not piece.sequence:
                assert owner.finish_reason, "a slot was given away before its sequence had finished"
                self.owner[piece.slot] = piece.sequence
                assert piece.start == 0
            assert piece.start == 0 or piece.start == len(self.held[piece.slot]), "rows must follow each other"
            rows = piece.sequence.tokens(piece.start, piece.count)
            assert len(rows) == piece.count
            self.held[piece.slot] = [*self.held.get(piece.slot, [])[: piece.start], *rows]
        self.in_flight.append(micro_batch)
        self.sent.append(micro_batch)

    def result(self) -> tuple[int, list[float]]:
        micro_batch = self.in_flight.popleft()
        values: list[float] = []
        for piece in micro_batch.pieces:
            held = piece.sequence.tokens(0, piece.start + piece.count)
            if micro_batch.output is FrameOutput.SCORES:
                targets = enumerate(piece.targets, start=piece.start + 1)
                values += [score(held[:end], target) for end, target in targets if target >= 0]
            elif piece.emits:
                values.append(next_token(held))
        assert len(values) == micro_batch.num_results
        return micro_batch.frame_id, values

    def _check(self, micro_batch: MicroBatch) -> None:
        limits, pieces = self.limits, micro_batch.pieces
        slots = [piece.slot for piece in pieces]
        assert len(set(slots)) == len(slots)
        assert all(0 <= slot < limits.num_lanes * limits.decode_sequences for slot in slots)
        same_phase = [other for other in self.in_flight if other.phase is micro_batch.phase]
        if micro_batch.phase is Phase.PREFILL:
            assert 1 <= len(pieces) <= limits.prefill_sequences
            assert sum(piece.count for piece in pieces) <= limits.prefill_tokens
            assert len({piece.sequence.is_scoring for piece in pieces}) == 1
            assert len(same_phase) < limits.prefills_in_flight
        else:
            assert 1 <= len(pieces) <= limits.decode_sequences
            assert all(piece.count == 1 and piece.emits for piece in pieces)
            lanes = {slot // limits.decode_sequences for slot in slots}
            busy = {piece.slot // limits.decode_sequences for other in same_phase for piece in other.pieces}
            assert len(lanes) == 1
            assert not lanes & busy, "a lane may have one frame in flight"


def _run(limits: Limits, sequences: list[Sequence]) -> _Pipeline:
    scheduler, pipeline = Scheduler(limits, sequences), _Pipeline(limits)
    while not scheduler.is_done:
        while micro_batch := scheduler.next_micro_batch():
            pipeline.send(micro_batch)
        assert pipeline.in_flight, "stuck: nothing to send and nothing to wait for"
        scheduler.record(*pipeline.result())
    assert not pipeline.in_flight
    return pipeline


@pytest.mark.parametrize("seed", range(150))
def test_every_request_gets_exactly_its_tokens(seed: int) -> None:
    """Whatever the lengths and limits, bounds hold, nothing gets stuck, and the answers are those of a lone request."""
    draw = random.Random(seed)  # noqa: S311 tests want reproducible draws
    limits = Limits(
        prefill_sequences=draw.randint(1, 5),
        prefill_tokens=draw.randint(1, 40),
        decode_sequences=draw.randint(1, 6),
        num_lanes=draw.randint(1, 4),
        prefills_in_flight=draw.randint(1, 5),
    )
    sequences = [
        _sequence(number, draw.randint(1, 60), draw.choice((0, 1, 2, draw.randint(1, 40))))
        for number in range(draw.randint(1, 40))
    ]

    _run(limits, sequences)

    for sequence in sequences:
        prompt = sequence.prompt.tolist()
        assert sequence.generated == answer(prompt, sequence.max_tokens)
        if sequence.is_scoring:
            assert sequence.scores == [score(prompt[:end], prompt[end]) for end in range(1, len(prompt))]


def test_schedules_are_reproducible() -> None:
    """The same sequences under the same limits make the same frames."""
    limits = Limits(3, 20, 4, 2, 3)

    def frames() -> list[tuple[Phase, list[tuple[int, int, int]]]]:
        sequences = [_sequence(number, 5 + number * 7 % 30, 1 + number % 6) for number in range(20)]
        sent = _run(limits, sequences).sent
        return [(batch.phase, [(piece.slot, piece.start, piece.count) for piece in batch.pieces]) for batch in sent]

    assert frames() == frames()


def test_equal_lengths_make_the_schedule_of_the_paper() -> None:
    """With equal lengths and as many slots as requests, prefill micro-batches and decode rounds are all full."""
    limits = Limits(prefill_sequences=2, prefill_tokens=100, decode_sequences=4, num_lanes=2, prefills_in_flight=3)
    sent = _run(limits, [_sequence(number, 10, 5) for number in range(8)]).sent

    prefills = [len(batch.pieces) for batch in sent if batch.phase is Phase.PREFILL]
    assert [batch.phase for batch in sent[: len(prefills)]] == [Phase.PREFILL] * len(prefills), "lanes start together"
    rounds = [len(batch.pieces) for batch in sent if batch.phase is Phase.DECODE]
    assert prefills == [2] * 4
    assert rounds == [4] * 2 * 4


def test_few_requests_are_spread_over_the_lanes() -> None:
    """Fewer requests than slots are dealt evenly, so that no stage waits for another's only frame."""
    limits = Limits(prefill_sequences=4, prefill_tokens=100, decode_sequences=8, num_lanes=2, prefills_in_flight=3)
    sent = _run(limits, [_sequence(number, 10, 3) for number in range(6)]).sent

    assert {len(batch.pieces) for batch in sent if batch.phase is Phase.DECODE} == {3}


def test_a_freed_slot_is_refilled_while_others_decode() -> None:
    """A waiting request is prefilled as soon as a slot is free, and joins the running lane."""
    limits = Limits(prefill_sequences=1, prefill_tokens=100, decode_sequences=2, num_lanes=1, prefills_in_flight=2)
    sequences = [_sequence(0, 4, 20), _sequence(1, 4, 3), _sequence(2, 4, 5)]
    sent = _run(limits, sequences).sent

    phases = [batch.phase for batch in sent]
    refill = max(index for index, phase in enumerate(phases) if phase is Phase.PREFILL)
    assert Phase.DECODE in phases[:refill], "the third request had to wait for a slot"
    assert any(len(batch.pieces) == 2 for batch in sent[refill + 1 :]), "it shares rounds with the first"


def test_long_prompts_are_cut_and_short_ones_are_not() -> None:
    """Only a prompt that is longer than any micro-batch is sent in chunks; only its last chunk emits a token."""
    limits = Limits(prefill_sequences=4, prefill_tokens=10, decode_sequences=4, num_lanes=1, prefills_in_flight=2)
    sent = _run(limits, [_sequence(0, 7, 1), _sequence(1, 7, 1), _sequence(2, 23, 1), _sequence(3, 7, 1)]).sent

    pieces = [
        [(piece.sequence.line_number, piece.count, piece.emits) for piece in batch.pieces]
        for batch in sent
        if batch.phase is Phase.PREFILL
    ]
    assert pieces == [
        [(0, 7, True)],
        [(1, 7, True)],
        [(2, 10, False)],
        [(2, 10, False)],
        [(2, 3, True), (3, 7, True)],
    ]
    assert [batch.output for batch in sent[2:5]] == [FrameOutput.NONE, FrameOutput.NONE, FrameOutput.TOKENS]


def test_a_resumed_sequence_prefills_its_prompt_and_its_tokens() -> None:
    """What an earlier run has generated is prefilled behind the prompt, and the answer goes on from there."""
    whole = answer(_sequence(0, 6, 9).prompt, 9)
    sequence = _sequence(0, 6, 9)
    sequence.replay(whole[:4])

    sent = _run(Limits(1, 100, 1, 1, 2), [sequence]).sent

    assert sent[0].phase is Phase.PREFILL
    assert sent[0].pieces[0].count == 6 + 4
    assert sequence.generated == whole


def test_unknown_results_are_ignored() -> None:
    """A result of a frame that is not in flight changes nothing."""
    scheduler = Scheduler(Limits(1, 10, 1, 1, 1), [_sequence(0, 3, 2)])
    micro_batch = scheduler.next_micro_batch()
    assert micro_batch is not None

    assert scheduler.record(micro_batch.frame_id + 1, [5]) == []
    assert [sequence.generated for sequence in scheduler.record(micro_batch.frame_id, [5])] == [[5]]
    assert scheduler.record(micro_batch.frame_id, [5]) == []


def test_limits_must_be_positive() -> None:
    """Limits under which nothing could ever be sent are refused."""
    with pytest.raises(InvalidInputError, match="cannot run"):
        Limits(1, 0, 1, 1, 1)


def test_the_longest_answers_start_first() -> None:
    """However late a long request comes in the file, the batch takes as many rounds as it alone, and ends full."""
    limits = Limits(prefill_sequences=4, prefill_tokens=100, decode_sequences=4, num_lanes=1, prefills_in_flight=2)
    sequences = [_sequence(number, 5, 10) for number in range(9)] + [_sequence(9, 5, 31)]

    rounds = [batch for batch in _run(limits, sequences).sent if batch.phase is Phase.DECODE]

    assert len(rounds) == 30
    assert len(rounds[-5].pieces) == 4
