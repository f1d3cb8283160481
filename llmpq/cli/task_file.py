"""Tasks to evaluate: JSON lines, each an item of one of two kinds.

    {"task": "tools", "context": "One drives a nail with a", "choices": ["hammer", "spoon"], "answer": 0}
    {"task": "stories", "text": "She had lost her keys. She looked everywhere for her keys"}

An item with `choices` is multiple choice: which of them follows the context, after a space? `answer` counts from 0.
An item with `text` asks for its last word, given all before it. Items of the same `task` are one task; an item without
belongs to the task that is named as the file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq.cli.eval_text import Encode, read_objects
from llmpq.errors import InvalidInputError
from llmpq.messages import from_fields

#: What each field is, in the words of JSON, and whether a value is that.
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "answer": ("a whole number", lambda value: type(value) is int),
    "choices": ("a list of strings", lambda value: type(value) is list and all(type(item) is str for item in value)),
    "context": ("a string", lambda value: type(value) is str),
    "task": ("a string", lambda value: type(value) is str),
    "text": ("a string", lambda value: type(value) is str),
}
#: Malformed lines that an error names; the rest are counted.
_MAX_NAMED = 5


@dataclass(frozen=True)
class Continuation:
    """A context and what may follow it, in tokens."""

    tokens: tuple[int, ...]
    num_context: int

    @property
    def num_scored(self) -> int:
        """Tokens of the continuation."""
        return len(self.tokens) - self.num_context


@dataclass(frozen=True)
class MultipleChoice:
    """A context, its possible continuations, and the number of the right one, from 0."""

    context: str
    choices: tuple[str, ...]
    answer: int
    task: str = ""

    def continuations(self) -> list[tuple[str, str]]:
        """(context, continuation) of each choice; a space joins them."""
        return [(self.context, " " + choice) for choice in self.choices]

    @property
    def problem(self) -> str:
        """What is wrong with it; empty if nothing is."""
        if len(self.choices) < 2:  # noqa: PLR2004 with one choice there is nothing to choose
            return "`choices` has fewer than two entries"
        if not all(choice.strip() for choice in self.choices) or not self.context.strip():
            return "`context` or a choice is empty"
        is_known = 0 <= self.answer < len(self.choices)
        return "" if is_known else f"`answer` is {self.answer}; there are choices 0 to {len(self.choices) - 1}"


@dataclass(frozen=True)
class LastWord:
    """A text whose last word is to be foretold."""

    text: str
    task: str = ""

    def continuations(self) -> list[tuple[str, str]]:
        """(all but the last word, the last word with the space before it)."""
        context, word = self.text.rstrip().rsplit(None, 1)
        return [(context, " " + word)]

    @property
    def problem(self) -> str:
        """What is wrong with it; empty if nothing is."""
        return "" if len(self.text.split()) > 1 else "`text` has fewer than two words"


Item = MultipleChoice | LastWord


@dataclass(frozen=True)
class TaskItem:
    """An item with its line in the file, from 1, and its continuations in tokens, in the order of the choices."""

    line: int
    item: Item
    continuations: tuple[Continuation, ...]


def read_tasks(path: Path, encode: Encode) -> dict[str, list[TaskItem]]:
    """The items of a file by task.

    Raises:
        InvalidInputError: Lines that are no items, with their numbers; or there are none.
    """
    tasks: dict[str, list[TaskItem]] = {}
    problems: list[str] = []
    for number, fields in read_objects(path):
        try:
            item = _parsed(fields)
            task = tasks.setdefault(item.task or path.stem, [])
            if task and type(task[0].item) is not type(item):
                raise InvalidInputError(f"is of another kind than line {task[0].line} of the same task")
            task.append(TaskItem(number, item, tuple(_encoded(encode, *pair) for pair in item.continuations())))
        except InvalidInputError as error:
            problems.append(f"line {number}: {error.message}")
    if problems:
        more = f"; and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
        raise InvalidInputError(f"{path}, {'; '.join(problems[:_MAX_NAMED])}{more}.", subject=str(path))
    if not tasks:
        raise InvalidInputError(f"{path} has no items.", subject=str(path))
    return tasks


def _parsed(fields: Mapping[str, Any]) -> Item:
    if ("choices" in fields) == ("text" in fields):
        raise InvalidInputError("needs either `choices` (with `context` and `answer`) or `text`")
    has_choices = "choices" in fields
    _check_types(fields, ("context", "choices", "answer") if has_choices else ("text",))
    item: Item = from_fields(MultipleChoice, fields) if has_choices else from_fields(LastWord, fields)
    if item.problem:
        raise InvalidInputError(item.problem)
    return item


def _check_types(fields: Mapping[str, Any], required: Sequence[str]) -> None:
    """Refuses fields of other types, which would else be taken for what they look like: "1" and true are no numbers."""
    missing = next((name for name in required if name not in fields), None)
    if missing is not None:
        raise InvalidInputError(f"`{missing}` is missing")
    for name in (*required, "task"):
        expected, is_expected = _TYPES[name]
        if name in fields and not is_expected(fields[name]):
            raise InvalidInputError(f"`{name}` is not {expected}")


def _encoded(encode: Encode, context: str, continuation: str) -> Continuation:
    """Context and continuation as the tokens of one text, as lm-eval has it.

    Encoded apart, they would not be the tokens that the model has seen in training. Spaces at the end of the context
    count to the continuation, for that is where most tokenizers have them.
    """
    stripped = context.rstrip()
    whole = encode(context + continuation)
    num_context = len(encode(stripped))
    if not 0 < num_context < len(whole):
        raise InvalidInputError(f"'{continuation.strip()}' has no tokens of its own after its context")
    return Continuation(tuple(whole), num_context)
