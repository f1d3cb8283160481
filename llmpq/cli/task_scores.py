"""From log-probabilities to the figures of a task, defined as in lm-eval: `acc`, `acc_norm`, and their errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmpq.cli.task_file import LastWord, MultipleChoice, TaskItem


@dataclass(frozen=True)
class ItemScore:
    """What became of one item.

    Attributes:
        line: Its line in the file.
        logprobs: Natural logarithm of the probability of each of its continuations.
        is_right: Whether the right choice is the most likely one, or the last word what the model says.
        is_right_by_length: The same, with log-probabilities per character of a choice.
    """

    line: int
    logprobs: tuple[float, ...]
    is_right: bool
    is_right_by_length: bool | None = None


@dataclass(frozen=True)
class TaskScore:
    """The figures of one task.

    Attributes:
        task: Its name.
        kind: "multiple_choice" or "last_word".
        items: Its items.
        acc: Share of items that are right.
        acc_stderr: Standard error of acc; None for a single item.
        acc_norm: Share that is right by log-probability per character; None for last words.
        acc_norm_stderr: Standard error of acc_norm.
        perplexity: exp of the mean negative log-probability of a last word, whole words counted; None otherwise.
        samples: Each item.
    """

    task: str
    kind: str
    items: int
    acc: float
    acc_stderr: float | None
    acc_norm: float | None = None
    acc_norm_stderr: float | None = None
    perplexity: float | None = None
    samples: tuple[ItemScore, ...] = field(default=(), repr=False)


def choice_score(line: int, item: MultipleChoice, logprobs: Sequence[float]) -> ItemScore:
    """Scores a multiple-choice item by the log-probability of each choice; the first of equals is taken."""
    per_character = [logprob / len(choice) for logprob, choice in zip(logprobs, item.choices, strict=True)]
    return ItemScore(
        line,
        tuple(logprobs),
        is_right=_largest(logprobs) == item.answer,
        is_right_by_length=_largest(per_character) == item.answer,
    )


def task_score(task: str, items: Sequence[TaskItem], scores: Sequence[ItemScore]) -> TaskScore:
    """Sums up a task from the scores of its items."""
    right = [score.is_right for score in scores]
    acc, acc_stderr = _mean(right)
    if isinstance(items[0].item, LastWord):
        mean_logprob = math.fsum(score.logprobs[0] for score in scores) / len(scores)
        perplexity = math.exp(-mean_logprob)
        return TaskScore(task, "last_word", len(items), acc, acc_stderr, perplexity=perplexity, samples=tuple(scores))
    acc_norm, acc_norm_stderr = _mean([bool(score.is_right_by_length) for score in scores])
    return TaskScore(
        task, "multiple_choice", len(items), acc, acc_stderr, acc_norm, acc_norm_stderr, samples=tuple(scores)
    )


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _mean(values: Sequence[bool]) -> tuple[float, float | None]:
    """The mean, and its standard error: sample deviation / sqrt(n), which for 0 and 1 is sqrt(p (1 - p) / (n - 1))."""
    mean = sum(values) / len(values)
    stderr = math.sqrt(mean * (1 - mean) / (len(values) - 1)) if len(values) > 1 else None
    return mean, stderr
