"""Progress: a bar on a terminal, a plain line every few seconds elsewhere."""

import re
import time
from typing import Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from llmpq.batch import Batch, BatchState
from llmpq.cli.terminal import note, stderr

#: Pause between plain lines about things that were told of already.
_LINE_EVERY_S = 5.0
_COUNT = re.compile(r"(: \d.*)?\.?$")
_COUNTED = re.compile(r": (\d+) of (\d+) (\w+)\.$")


class StatusLines:
    """Prints sentences on standard error: each new topic at once, all others every few seconds.

    The topic is what stands before the count of `Measuring device fast: 12 of 71 points.`
    """

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._next_line_at = 0.0

    def say(self, sentence: str) -> None:
        """Prints a sentence if it is time, or if it is about something new."""
        topic, now = _COUNT.sub("", sentence), time.monotonic()
        if topic not in self._told or now >= self._next_line_at:
            note(sentence)
            self._told.add(topic)
            self._next_line_at = now + _LINE_EVERY_S


class MeasuringBars:
    """A bar on a terminal for each thing that is measured; elsewhere, plain lines as `StatusLines` prints them.

    It reads sentences such as `Measuring device fast: 12 of 71 points.`
    """

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=stderr,
            disable=not stderr.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lines = StatusLines()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, sentence: str) -> None:
        """Shows a sentence."""
        if not stderr.is_terminal:
            self._lines.say(sentence)
            return
        topic, counted = _COUNT.sub("", sentence), _COUNTED.search(sentence)
        if topic not in self._tasks:
            self._tasks[topic] = self._bars.add_task(topic, total=None, detail="")
        if counted:
            done, total, unit = int(counted[1]), int(counted[2]), counted[3]
            self._bars.update(self._tasks[topic], completed=done, total=total, detail=f"{done} of {total} {unit}")


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
        self._lines = StatusLines()

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
        else:
            self._lines.say(f"{batch.state.label}: {detail}" if detail else batch.state.label)

    def _describe(self, batch: Batch, now: float) -> tuple[int, int | None, str]:
        """Steps done, steps in all (None if unknown), and the sentence beside them."""
        num_layers = sum(stage.layers_total for stage in batch.stages)
        if batch.state is BatchState.LOADING and num_layers:
            done = sum(stage.layers_done for stage in batch.stages)
            activities = "".join(f"; {stage.device_id}: {stage.activity}" for stage in batch.stages if stage.activity)
            return done, num_layers, f"{done} of {num_layers} layers{activities}"
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
