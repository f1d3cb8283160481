"""The figures of tasks, against the definitions."""

from statistics import mean, stdev

import pytest

from llmpq.cli.task_file import LastWord, MultipleChoice, TaskItem
from llmpq.cli.task_scores import ItemScore, choice_score, task_score


def test_length_counts_in_characters() -> None:
    """The likeliest choice is right for acc; for acc_norm it is the likeliest per character, without the space."""
    item = MultipleChoice("context", ("a longer one", "tiny"), answer=0)
    score = choice_score(1, item, [-6.0, -4.0])
    assert (score.is_right, score.is_right_by_length) == (False, True)
    assert choice_score(1, item, [-3.9, -4.0]).is_right


def test_the_first_of_equals_is_taken() -> None:
    """As argmax does it, so that a tie is never right by luck of the answer."""
    for answer, is_right in ((0, True), (1, False)):
        assert choice_score(1, MultipleChoice("c", ("same", "here"), answer), [-2.0, -2.0]).is_right is is_right


def test_errors_are_those_of_a_mean() -> None:
    """The standard error is the sample's deviation over the root of its size; one item has none."""
    right = [True, True, False, True, False]
    item = MultipleChoice("c", ("x", "y"), 0)
    items = [TaskItem(number, item, ()) for number in range(5)]
    scores = [ItemScore(number, (0.0, 0.0), value, not value) for number, value in enumerate(right)]
    score = task_score("t", items, scores)
    assert score.acc == mean(map(int, right))
    assert score.acc_stderr == pytest.approx(stdev(map(int, right)) / 5**0.5)
    assert score.acc_norm == pytest.approx(0.4)
    assert task_score("t", items[:1], scores[:1]).acc_stderr is None


def test_perplexity_of_last_words_counts_whole_words() -> None:
    """Exp of the mean negative log-probability of words, however many tokens each has."""
    items = [TaskItem(number, LastWord("a b"), ()) for number in range(2)]
    score = task_score("t", items, [ItemScore(0, (-1.0,), is_right=True), ItemScore(1, (-4.0,), is_right=False)])
    assert score.perplexity == pytest.approx(2.718281828**2.5)
    assert (score.acc, score.acc_norm) == (0.5, None)
