"""Which path multiplies how many rows."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from llmpq.cache_dir import CACHE_VARIABLE
from quantizer import choice_cache
from quantizer.kernel_choice import ROW_BUCKETS, Choice, choose, find_fastest
from quantizer.multi_path import MultiPathLinear

CPU = torch.device("cpu")


class _TwoPathLinear(MultiPathLinear):
    """A linear that counts how often each of its two paths runs."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__(weight.shape, bias, "test")
        self.runs = {"one": 0, "other": 0}
        self._weight = weight

    def paths(self) -> Mapping[str, object]:
        return {"one": self._one, "other": self._other}

    def dequantized(self) -> torch.Tensor:
        return self._weight

    @property
    def weight_bytes(self) -> int:
        return self._weight.nbytes

    def _one(self, x: torch.Tensor) -> torch.Tensor:
        self.runs["one"] += 1
        return x @ self._weight.T

    def _other(self, x: torch.Tensor) -> torch.Tensor:
        self.runs["other"] += 1
        return (self._weight @ x.T).T


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone, which no process has read."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(choice_cache, "_seen", {})
    return tmp_path / "kernels"


class _Stopwatch:
    """Pretends that path `few` takes as long as it has rows, and `many` always as long as so many rows."""

    def __init__(self, many: float) -> None:
        self.many = many
        self.asked: list[int] = []

    def __call__(self, num_rows: int) -> Mapping[str, float]:
        self.asked.append(num_rows)
        return {"few": float(num_rows), "many": self.many}


@pytest.mark.parametrize(
    ("many", "last_few"), [(0.5, 0), (1.5, 1), (12.0, 8), (100.0, 64), (511.0, 256), (1e3, 512), (1e4, 4096)]
)
def test_each_number_of_rows_gets_its_fastest_path(many: float, last_few: int) -> None:
    """A choice holds for all numbers of rows up to the measured one, and the last one for any above."""
    choice = find_fastest(_Stopwatch(many), max_rows=4096, has_time=lambda: True)
    for rows in (1, 2, 3, 8, 9, 64, 65, 256, 257, 512, 513, 2048, 4096, 5000):
        assert choice.path(rows) == ("few" if rows <= last_few or last_few == 4096 else "many"), rows
    assert choice.path(0) == choice.path(1)


def test_no_more_is_measured_than_tells() -> None:
    """Where one path is the fastest at one row and at many, nothing between is tried; else the way is halved."""
    never, once = _Stopwatch(1e4), _Stopwatch(12.0)
    find_fastest(never, max_rows=512, has_time=lambda: True)
    find_fastest(once, max_rows=512, has_time=lambda: True)
    assert never.asked == [1, 512]
    assert once.asked == [1, 512, 16, 4, 8]


def test_what_takes_too_long_is_not_measured() -> None:
    """Numbers of rows above the limit are taken to be like those below; one row is always tried."""
    stopwatch, tight = _Stopwatch(12.0), _Stopwatch(0.5)
    choice = find_fastest(stopwatch, max_rows=100, has_time=lambda: True)
    assert max(stopwatch.asked) == 64
    assert [choice.path(rows) for rows in (8, 16, 512)] == ["few", "many", "many"]
    assert find_fastest(tight, max_rows=0, has_time=lambda: True).path(512) == "many"
    assert set(tight.asked) == {1}


def test_a_busy_host_tries_only_the_ends() -> None:
    """When time is up, what was found for fewer rows holds until the next that was tried."""
    stopwatch = _Stopwatch(12.0)
    choice = find_fastest(stopwatch, max_rows=512, has_time=lambda: False)
    assert stopwatch.asked == [1, 512]
    assert [choice.path(rows) for rows in (1, 256, 512)] == ["few", "few", "many"]


def test_one_path_is_not_measured() -> None:
    """Where there is no choice there is nothing to run."""

    def fail(_x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("measured")

    assert choose("test", (4, 4), CPU, torch.float32, {"only": fail}) == Choice(("only",))


def test_a_choice_is_remembered_on_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process, or another layer of the same shape, multiplies nothing to know its paths."""
    first = _TwoPathLinear(torch.randn(8, 16))
    first.choose_paths(CPU, torch.float32)
    assert min(first.runs.values()) > 0
    monkeypatch.setattr(choice_cache, "_seen", {})  # as in another process
    second = _TwoPathLinear(torch.randn(8, 16))
    second.choose_paths(CPU, torch.float32)
    assert second.runs == {"one": 0, "other": 0}
    assert [second.path_at(rows) for rows in ROW_BUCKETS] == [first.path_at(rows) for rows in ROW_BUCKETS]
    assert len(list(cache.iterdir())) == 1


def test_shapes_and_kinds_are_measured_apart(cache: Path) -> None:
    """A choice is found for each shape and for each type of input."""
    for shape, dtype in (((8, 16), torch.float32), ((16, 8), torch.float32), ((8, 16), torch.bfloat16)):
        linear = _TwoPathLinear(torch.randn(shape).to(dtype))
        linear.choose_paths(CPU, dtype)
        assert min(linear.runs.values()) > 0
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda _content: "",
        lambda content: content[: len(content) // 2],
        lambda _content: "[1, 2]",
        lambda content: content.replace('"one"', '"gone"').replace('"other"', '"gone"'),
        lambda content: json.dumps(json.loads(content) | {"answer": ["one"]}),
        lambda content: json.dumps(json.loads(content) | {"answer": 5}),
        lambda content: json.dumps(json.loads(content) | {"key": {"device": "another"}}),
    ],
)
def test_a_damaged_file_counts_as_missing(damage: object, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are measured again, and the file is whole again."""
    _TwoPathLinear(torch.randn(8, 16)).choose_paths(CPU, torch.float32)
    (file,) = cache.iterdir()
    file.write_text(damage(file.read_text()))
    monkeypatch.setattr(choice_cache, "_seen", {})
    linear = _TwoPathLinear(torch.randn(8, 16))
    linear.choose_paths(CPU, torch.float32)
    assert min(linear.runs.values()) > 0
    assert set(json.loads(file.read_text())["answer"]) <= {"one", "other"}
    assert list(cache.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a process still measures only once."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    first, second = _TwoPathLinear(torch.randn(8, 16)), _TwoPathLinear(torch.randn(8, 16))
    first.choose_paths(CPU, torch.float32)
    second.choose_paths(CPU, torch.float32)
    assert second.runs == {"one": 0, "other": 0}


def test_forward_takes_the_chosen_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame is multiplied by the path that was found for its number of rows, and by no other."""
    chosen = Choice(tuple("one" if rows <= 4 else "other" for rows in ROW_BUCKETS))
    monkeypatch.setattr("quantizer.multi_path.choose", lambda *_args: chosen)
    linear = _TwoPathLinear(torch.randn(8, 16))
    for num_rows, expected in ((1, "one"), (4, "one"), (5, "other"), (2000, "other")):
        linear.runs = {"one": 0, "other": 0}
        x = torch.randn(num_rows, 16)
        assert torch.allclose(linear.forward(x), x @ linear.dequantized().T, atol=1e-5)
        assert linear.runs == {"one": 0, "other": 0} | {expected: 1}
