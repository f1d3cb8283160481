"""A terminal that commands are typed into."""

import sys
from typing import NamedTuple

import pytest

from llmpq.cli import main


class Outcome(NamedTuple):
    """What a command left: its exit status and its two streams."""

    status: int
    out: str
    err: str


class Terminal:
    """Runs commands as a shell would, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def run(self, *arguments: object) -> Outcome:
        """Runs `llmpq ARGUMENTS`."""
        self._monkeypatch.setattr(sys, "argv", ["llmpq", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = self._capsys.readouterr()
        return Outcome(ended.value.code or 0, captured.out, captured.err)
