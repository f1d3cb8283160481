"""The output file of a batch, and the error file beside it."""

from pathlib import Path
from typing import IO, Self

from llmpq.batch import Result


class ResultFiles:
    """Writes answers to `output` and error results to `output` with `.errors.jsonl`, as they come.

    Both are written under a temporary name, `.part`, and get their own at the end: a file under its own name is
    complete.
    There is an error file only if there are errors.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.errors = output.with_suffix(".errors.jsonl")
        self.num_errors = 0
        self._open: dict[Path, IO[str]] = {}

    def __enter__(self) -> Self:
        self._file(self.output)
        return self

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        for path, file in self._open.items():
            file.close()
            part = _part(path)
            if exception is None:
                part.replace(path)
            elif part.stat().st_size == 0:
                part.unlink()
        if exception is None and not self.num_errors:
            self.errors.unlink(missing_ok=True)  # of an earlier run

    def write(self, result: Result) -> None:
        """Appends one result to the file that it belongs in."""
        self.num_errors += result.is_error
        file = self._file(self.errors if result.is_error else self.output)
        file.write(result.json + "\n")
        file.flush()

    def _file(self, path: Path) -> IO[str]:
        if path not in self._open:
            self._open[path] = _part(path).open("w", encoding="utf-8")
        return self._open[path]


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")
