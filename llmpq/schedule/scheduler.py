"""Which micro-batch to send next; pure and deterministic, so it can be reasoned about and tested without a pipeline.

A sequence holds a KV slot from its first row to its last token. Slots belong to lanes of xi. All sequences of a lane
decode together, one frame in flight per lane; several lanes keep all stages busy. A free slot is refilled by prefilling
the next waiting request, which joins its lane's next round. A lane that was empty starts to decode only once all that
it was given is prefilled, and the first lanes once nothing is being prefilled: otherwise the last of them would end
alone, in a pipeline that it cannot fill. So with equal lengths the schedule is the paper's: prefill, then full rounds.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Values
from dataclasses import asdict, dataclass
from itertools import count

from llmpq.device import Phase
from llmpq.errors import InvalidInputError
from llmpq.frames import FrameOutput
from llmpq.plan import Plan
from llmpq.schedule.sequence import Sequence


@dataclass(frozen=True)
class Limits:
    """What a micro-batch may be.

    Attributes:
        prefill_sequences: eta, sequences of a prefill micro-batch.
        prefill_tokens: Rows of a prefill micro-batch; longer prompts are cut into chunks.
        decode_sequences: xi, slots of a lane.
        num_lanes: mu, decode micro-batches in flight.
        prefills_in_flight: Prefill micro-batches in flight.

    Raises:
        InvalidInputError: One of them is less than 1.
    """

    prefill_sequences: int
    prefill_tokens: int
    decode_sequences: int
    num_lanes: int
    prefills_in_flight: int

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 1:
            raise InvalidInputError(f"A pipeline cannot run under these limits: {self}.", subject="plan")

    @classmethod
    def of_plan(cls, plan: Plan) -> "Limits":
        """The limits that a plan sets; one prefill more than stages keeps the first stage busy."""
        return cls(
            prefill_sequences=plan.prefill_micro_batch,
            prefill_tokens=plan.max_prefill_tokens,
            decode_sequences=plan.decode_micro_batch,
            num_lanes=plan.num_lanes,
            prefills_in_flight=len(plan.stages) + 1,
        )


@dataclass(frozen=True)
class Piece:
    """Rows of one sequence in a micro-batch."""

    sequence: Sequence
    slot: int
    start: int
    count: int
    emits: bool

    @property
    def targets(self) -> list[int]:
        """For scoring: the token that follows each row; -1 where the prompt has one token only."""
        following = self.sequence.tokens(self.start + 1, self.count)
        return following + [-1] * (self.count - len(following))


@dataclass(frozen=True)
class MicroBatch:
    """What one frame carries."""

    frame_id: int
    phase: Phase
    output: FrameOutput
    pieces: tuple[Piece, ...]

    @property
    def num_results(self) -> int:
        """Values that the last stage returns for it."""
        if self.output is FrameOutput.SCORES:
            return sum(target >= 0 for piece in self.pieces for target in piece.targets)
        return sum(piece.emits for piece in self.pieces)


class Scheduler:
    """Turns sequences into micro-batches and results back into tokens.

    Args:
        limits: What a micro-batch may be.
        sequences: The sequences, none of them finished. Those that may generate most start first, so that no long one
            is left for the end, when most slots are empty (Graham's rule of the longest processing time); equal ones
            start in the order given.
    """

    def __init__(self, limits: Limits, sequences: Iterable[Sequence]) -> None:
        self._limits = limits
        self._waiting = deque(sorted(sequences, key=lambda sequence: sequence.num_left, reverse=True))
        self._lanes = deque(_Lane(number, limits.decode_sequences) for number in range(limits.num_lanes))
        self._cut: tuple[Sequence, int] | None = None  # the one whose prompt is sent in part, and its slot
        self._in_flight: dict[int, tuple[MicroBatch, _Lane | None]] = {}
        self._frame_ids = count(1)

    @property
    def is_done(self) -> bool:
        """Whether every sequence has finished."""
        return not self._waiting and not any(lane.slots for lane in self._lanes)

    def next_micro_batch(self) -> MicroBatch | None:
        """The micro-batch to send now; None if a result must come first."""
        return self._next_prefill() or self._next_decode()

    def record(self, frame_id: int, values: Values[float]) -> list[Sequence]:
        """Takes the result of a micro-batch.

        Args:
            frame_id: Of the micro-batch; an unknown one is ignored.
            values: `num_results` token ids or scores.

        Returns:
            The sequences that got values; those with a finish reason have given up their slots.
        """
        if frame_id not in self._in_flight:
            return []
        micro_batch, lane = self._in_flight.pop(frame_id)
        if lane:
            lane.is_decoding = False
        advanced = (
            _scored(micro_batch, values) if micro_batch.output is FrameOutput.SCORES else _emitted(micro_batch, values)
        )
        for piece in advanced:
            self._advance(piece)
        return [piece.sequence for piece in advanced]

    def in_flight(self, frame_id: int) -> MicroBatch | None:
        """The micro-batch of that number, if its result has not come yet."""
        return self._in_flight.get(frame_id, (None, None))[0]

    @property
    def _num_prefills_in_flight(self) -> int:
        return sum(micro_batch.phase is Phase.PREFILL for micro_batch, _ in self._in_flight.values())

    def _next_prefill(self) -> MicroBatch | None:
        if self._num_prefills_in_flight >= self._limits.prefills_in_flight:
            return None
        pieces = tuple(self._prefill_pieces())
        if not pieces:
            return None
        is_scoring = pieces[0].sequence.is_scoring
        output = FrameOutput.TOKENS if any(piece.emits for piece in pieces) else FrameOutput.NONE
        return self._sent(Phase.PREFILL, FrameOutput.SCORES if is_scoring else output, pieces, None)

    def _prefill_pieces(self) -> Iterator[Piece]:
        """Fills a prefill micro-batch. Only a prompt that is too long for any is cut; the others start whole."""
        rows_left, is_scoring = self._limits.prefill_tokens, None
        for _ in range(self._limits.prefill_sequences):
            sequence = self._cut[0] if self._cut else self._waiting[0] if self._waiting else None
            if sequence is None or is_scoring not in {None, sequence.is_scoring}:
                return
            is_first = rows_left == self._limits.prefill_tokens
            if sequence.num_unsent > rows_left and not is_first:
                return
            slot = self._cut[1] if self._cut else self._admit()
            if slot is None:
                return
            piece = _piece(sequence, slot, min(sequence.num_unsent, rows_left))
            self._cut = (sequence, slot) if sequence.num_unsent else None
            rows_left, is_scoring = rows_left - piece.count, sequence.is_scoring
            yield piece

    def _admit(self) -> int | None:
        """Gives the next waiting sequence a slot, so that lanes come to hold equally many; None if all are taken."""
        lanes = sorted(self._lanes, key=lambda lane: lane.number)
        num_sequences = len(self._waiting) + sum(len(lane.slots) for lane in lanes)
        share = min(self._limits.decode_sequences, -(-num_sequences // len(lanes)))
        for lane in lanes:
            if len(lane.slots) < share:
                return lane.take(self._waiting.popleft())
        return None

    def _next_decode(self) -> MicroBatch | None:
        """The next round of the lane that has waited longest. The first lanes start together, so they end together."""
        if self._num_prefills_in_flight and not any(lane.is_open for lane in self._lanes):
            return None
        for lane in self._lanes:
            ready = lane.ready()
            if ready:
                lane.is_decoding = lane.is_open = True
                self._lanes.remove(lane)
                self._lanes.append(lane)
                pieces = tuple(_piece(sequence, slot, 1) for slot, sequence in ready)
                return self._sent(Phase.DECODE, FrameOutput.TOKENS, pieces, lane)
        return None

    def _sent(
        self,
        phase: Phase,
        output: FrameOutput,
        pieces: tuple[Piece, ...],
        lane: "_Lane | None",
    ) -> MicroBatch:
        micro_batch = MicroBatch(next(self._frame_ids), phase, output, pieces)
        self._in_flight[micro_batch.frame_id] = (micro_batch, lane)
        return micro_batch

    def _advance(self, piece: Piece) -> None:
        """Lets a sequence that got its values go on: to decoding, or out of its slot."""
        lane = next(lane for lane in self._lanes if piece.slot in lane.range)
        if piece.sequence.finish_reason:
            lane.release(piece.slot)
        elif not piece.sequence.is_scoring:
            lane.prefilled.add(piece.slot)


class _Lane:
    """Sequences that decode together.

    Attributes:
        range: All its slots.
        slots: The sequence in each slot that is taken.
        prefilled: Slots whose sequence decodes.
        is_open: Whether it has decoded since it was last empty.
        is_decoding: Whether a frame of it is in flight.
    """

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.range = range(number * size, (number + 1) * size)
        self.slots: dict[int, Sequence] = {}
        self.prefilled: set[int] = set()
        self.is_open = False
        self.is_decoding = False

    def take(self, sequence: Sequence) -> int:
        slot = next(slot for slot in self.range if slot not in self.slots)
        self.slots[slot] = sequence
        return slot

    def release(self, slot: int) -> None:
        del self.slots[slot]
        self.prefilled.discard(slot)
        self.is_open = self.is_open and bool(self.slots)

    def ready(self) -> list[tuple[int, Sequence]]:
        """Slots and sequences of its next round; empty if it cannot start one now."""
        is_filling = any(not sequence.is_scoring for slot, sequence in self.slots.items() if slot not in self.prefilled)
        if self.is_decoding or (is_filling and not self.is_open):
            return []
        return [(slot, self.slots[slot]) for slot in sorted(self.prefilled)]


def _piece(sequence: Sequence, slot: int, num_rows: int) -> Piece:
    """The next rows of a sequence, which from now on count as sent."""
    start = sequence.num_sent
    sequence.num_sent += num_rows
    emits = not sequence.is_scoring and not sequence.num_unsent
    return Piece(sequence, slot, start, num_rows, emits)


def _emitted(micro_batch: MicroBatch, tokens: Values[float]) -> list[Piece]:
    pieces = [piece for piece in micro_batch.pieces if piece.emits]
    for piece, token in zip(pieces, tokens, strict=True):
        piece.sequence.append(int(token))
    return pieces


def _scored(micro_batch: MicroBatch, scores: Values[float]) -> list[Piece]:
    at = 0
    for piece in micro_batch.pieces:
        num_scores = sum(target >= 0 for target in piece.targets)
        piece.sequence.add_scores(scores[at : at + num_scores])
        at += num_scores
    return list(micro_batch.pieces)
