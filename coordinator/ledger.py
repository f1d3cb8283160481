"""Writes down what a run brings: tokens into the journal, finished requests as answers."""

from collections.abc import Iterable, Sequence

from coordinator.openai_answers import generation_answer, scoring_answer
from coordinator.requests import Answer, Request
from coordinator.stopping import StopCondition, stop_condition
from coordinator.store import JobStore, JournalEntry, UnfinishedRequest
from coordinator.tokenizing import ModelTokenizer
from llmpq.batch import Batch, BatchOptions
from llmpq.schedule.sequence import Sequence as TokenSequence


class Ledger:
    """The unfinished requests of one batch, and what becomes of them.

    Args:
        store: Where it is written.
        batch: The batch.
        options: Its options.
        tokenizer: Of its model.

    Attributes:
        num_recorded: Tokens and answers written so far; tells progress from standstill.
    """

    def __init__(self, store: JobStore, batch: Batch, options: BatchOptions, tokenizer: ModelTokenizer) -> None:
        self._store = store
        self._batch_id = batch.batch_id
        self._model = batch.model
        self._options = options
        self._tokenizer = tokenizer
        self._requests: dict[int, tuple[Request, StopCondition]] = {}
        self.num_recorded = 0

    def opened(self, unfinished: Iterable[UnfinishedRequest]) -> list[TokenSequence]:
        """The sequences that have still to run. Those whose journal holds the whole answer are finished at once."""
        sequences = [self._sequence(entry) for entry in unfinished]
        for sequence in sequences:
            if sequence.finish_reason:
                self._finish(sequence)
        return [sequence for sequence in sequences if not sequence.finish_reason]

    def record(self, advanced: Sequence[TokenSequence]) -> None:
        """Takes sequences that have just got values."""
        self.num_recorded += len(advanced)
        entries = [
            JournalEntry(sequence.line_number, len(sequence.generated) - 1, sequence.generated[-1])
            for sequence in advanced
            if not sequence.is_scoring
        ]
        if entries:
            self._store.post_tokens(self._batch_id, entries)
        for sequence in advanced:
            if sequence.finish_reason:
                self._finish(sequence)

    def _sequence(self, entry: UnfinishedRequest) -> TokenSequence:
        request = entry.request
        stop = stop_condition(request, self._tokenizer, ignore_stop=self._options.ignore_stop)
        self._requests[request.line_number] = request, stop
        sequence = TokenSequence(
            line_number=request.line_number,
            prompt=request.prompt,
            max_tokens=request.max_tokens,
            sampling=request.sampling,
            is_complete=stop.is_met,
        )
        sequence.replay(entry.generated)
        return sequence

    def _finish(self, sequence: TokenSequence) -> None:
        answer = self._answer(sequence)
        num_unneeded_tokens = sequence.max_tokens - len(sequence.generated)
        self._store.post_answer(self._batch_id, answer, num_unneeded_tokens)

    def _answer(self, sequence: TokenSequence) -> Answer:
        request, stop = self._requests.pop(sequence.line_number)
        if sequence.is_scoring:
            text = self._tokenizer.decode(request.prompt)
            return scoring_answer(request, model=self._model, text=text, logprobs=sequence.scores)
        assert sequence.finish_reason is not None  # noqa: S101 only finished sequences come here
        return generation_answer(
            request,
            model=self._model,
            text=stop.text(sequence.generated),
            num_generated=len(sequence.generated),
            finish_reason=sequence.finish_reason,
        )
