"""Progress of a batch: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from llmpq.batch import Batch, BatchState
from llmpq.cli.terminal import note, stderr

#: Pause between plain lines, unless there is something new to say.
_LINE_EVERY_S = 5.0


class BatchProgress:
    """Shows snapshots of a batch on standard error."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=stderr,
            disable=not stderr.is_terminal,
        )
        self._task = self._bar.add_task("queued", total=None, detail="")
        self._running_since: tuple[float, int] | None = None  # clock, tokens
        self._said: tuple[BatchState, str] | None = None
        self._next_line_at = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, batch: Batch) -> None:
        """Shows where a batch stands."""
        now = time.monotonic()
        if batch.state is BatchState.RUNNING and self._running_since is None:
            self._running_since = (now, batch.generated_tokens)
        done, total, detail = self._describe(batch, now)
        if stderr.is_terminal:
            self._bar.update(self._task, description=batch.state.label, completed=done, total=total, detail=detail)
        elif (batch.state, batch.status_message) != self._said or now >= self._next_line_at:
            note(f"{batch.state.label}: {detail}" if detail else batch.state.label)
            self._said, self._next_line_at = (batch.state, batch.status_message), now + _LINE_EVERY_S

    def _describe(self, batch: Batch, now: float) -> tuple[int, int | None, str]:
        """Steps done, steps in all (None if unknown), and the sentence beside them."""
        num_layers = sum(stage.layers_total for stage in batch.stages)
        if batch.state is BatchState.LOADING and num_layers:
            done = sum(stage.layers_done for stage in batch.stages)
            return done, num_layers, f"{done} of {num_layers} layers"
        if batch.state is BatchState.RUNNING or batch.state.is_final:
            answered = batch.requests_completed + batch.requests_failed
            detail = f"{answered} of {batch.requests_total} requests, {batch.generated_tokens:,} tokens"
            return answered, batch.requests_total, detail + self._rate(batch, now)
        return 0, None, batch.status_message

    def _rate(self, batch: Batch, now: float) -> str:
        """Tokens per second since this client has watched it run, and when it will be done at the latest."""
        if self._running_since is None or batch.state is not BatchState.RUNNING:
            return ""
        since, tokens_then = self._running_since
        rate = (batch.generated_tokens - tokens_then) / max(now - since, 1e-3)
        if not rate:
            return ""
        return f", {rate:.0f} tokens/s, at most {batch.remaining_tokens_max / rate:.0f} s left"
