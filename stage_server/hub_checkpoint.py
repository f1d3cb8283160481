"""Weights of a model on the Hugging Face Hub: of each file the whole, or only the tensors that are needed."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from llmpq.cache_dir import cache_directory, cache_limit_bytes
from llmpq.errors import InvalidInputError
from llmpq.hub import HubModel, hub_errors
from llmpq.units import format_bytes
from stage_server.lru_directory import LruDirectory
from stage_server.safetensors_checkpoint import INDEX_FILE, SINGLE_FILE, local_reader, missing_tensor, read_weight_map
from stage_server.safetensors_reader import SafetensorsReader

#: Share of a file from which on it is fetched whole.
WHOLE_FILE_SHARE = 0.5


class HubCheckpoint:
    """A model on the Hub; a Checkpoint.

    A file of which much is needed is fetched into the cache of huggingface_hub, where others find it too. Of other
    files the header is read across the network, then the tensors one by one, which are kept in the cache of this host.

    Args:
        model: The model, with its commit.
        directory: Of this commit in the cache of huggingface_hub.
        report: Told in a sentence what is being fetched.

    Raises:
        NotFoundError, UnavailableError: As `hub_errors`, here and whenever something is read.
    """

    def __init__(self, model: HubModel, directory: Path, report: Callable[[str], None]) -> None:
        self._model = model
        self._directory = directory
        self._report = report
        self._tensors = LruDirectory(cache_directory() / "hub", cache_limit_bytes())
        self._remote: dict[str, SafetensorsReader] = {}
        self._expected: tuple[str, ...] = ()
        self._is_worth_whole: dict[str, bool] = {}
        self._file_of = self._index()

    def has(self, name: str) -> bool:
        """See Checkpoint."""
        return name in self._file_of

    def tensor(self, name: str) -> torch.Tensor:
        """See Checkpoint."""
        with self._errors_of(name):
            return self._reader_of(name).tensor(name)

    def num_rows(self, name: str) -> int:
        """See Checkpoint."""
        with self._errors_of(name):
            return self._reader_of(name).num_rows(name)

    def rows(self, name: str, first: int, end: int) -> torch.Tensor:
        """See Checkpoint."""
        with self._errors_of(name):
            return self._reader_of(name).rows(name, first, end)

    def expect(self, beginnings: Sequence[str]) -> None:
        """See Checkpoint: decides which files are fetched whole."""
        self._expected = tuple(beginnings)
        self._is_worth_whole.clear()

    def _reader_of(self, name: str) -> SafetensorsReader:
        """Reads the file that has a tensor: the whole one, or one with nothing else, after fetching either."""
        file_name = self._file_of[name]
        if (self._directory / file_name).is_file():
            return _with_tensor(name, local_reader(self._directory / file_name))
        if path := self._tensors.find(self._kept_as(name)):
            try:
                return local_reader(path)
            except InvalidInputError:  # cut short when the power failed
                path.unlink(missing_ok=True)
        remote = _with_tensor(name, self._remote_reader(file_name))
        if self._shall_fetch_whole(file_name):
            return local_reader(self._fetch(file_name))
        self._report(f"Fetching tensor {name}, {format_bytes(remote.entries[name].num_bytes)}.")
        kept = self._tensors.store(self._kept_as(name), partial(remote.extract, name))
        return local_reader(kept) if kept else remote

    def _shall_fetch_whole(self, file_name: str) -> bool:
        if file_name not in self._is_worth_whole:
            entries = self._remote_reader(file_name).entries
            needed = [
                entry.num_bytes
                for name, entry in entries.items()
                if name.startswith(self._expected) and not self._tensors.find(self._kept_as(name))
            ]
            whole = sum(entry.num_bytes for entry in entries.values())
            self._is_worth_whole[file_name] = sum(needed) >= WHOLE_FILE_SHARE * whole
        return self._is_worth_whole[file_name]

    def _fetch(self, file_name: str) -> Path:
        """Fetches a file into the cache of huggingface_hub."""
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 most processes never need it
        from huggingface_hub.utils.tqdm import tqdm  # noqa: PLC0415 as above

        num_fetched, report = 0, self._report
        total = format_bytes(sum(entry.num_bytes for entry in self._remote_reader(file_name).entries.values()))

        class Reporting(tqdm):
            """Passes on what a bar would show, but for the second bar of a file, of compressed bytes."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self._is_counted = not str(kwargs.get("name")).endswith(".transfer")
                super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

            def update(self, n: Any = 1) -> Any:
                nonlocal num_fetched
                num_fetched += int(n or 0) if self._is_counted else 0
                report(f"Fetching {file_name}: {format_bytes(num_fetched)} of {total}.")
                return super().update(n)

        return Path(hf_hub_download(self._model.repo, file_name, revision=self._model.revision, tqdm_class=Reporting))

    def _remote_reader(self, file_name: str) -> SafetensorsReader:
        if file_name not in self._remote:
            self._remote[file_name] = SafetensorsReader(f"{self._model}/{file_name}", partial(self._open, file_name))
        return self._remote[file_name]

    def _open(self, file_name: str) -> BinaryIO:
        """A file on the Hub, of which just the ranges are fetched that are read."""
        from huggingface_hub import HfFileSystem  # noqa: PLC0415 as above

        path = f"{self._model.repo}@{self._model.revision}/{file_name}"
        return cast("BinaryIO", HfFileSystem().open(path, "rb", cache_type="none"))

    def _index(self) -> Mapping[str, str]:
        """The file of each tensor."""
        if (self._directory / INDEX_FILE).is_file():
            return read_weight_map(self._directory / INDEX_FILE)
        if (self._directory / SINGLE_FILE).is_file():
            return dict.fromkeys(local_reader(self._directory / SINGLE_FILE).entries, SINGLE_FILE)
        with hub_errors(self._model, f"{SINGLE_FILE} or {INDEX_FILE}"):
            return dict.fromkeys(self._remote_reader(SINGLE_FILE).entries, SINGLE_FILE)

    def _kept_as(self, name: str) -> str:
        return f"{self._model.repo.replace('/', '--')}/{self._model.revision}/{name}.safetensors"

    def _errors_of(self, name: str) -> AbstractContextManager[None]:
        if name not in self._file_of:
            raise missing_tensor(name, str(self._model))
        return hub_errors(self._model, self._file_of[name])


def _with_tensor(name: str, reader: SafetensorsReader) -> SafetensorsReader:
    if name not in reader.entries:
        raise missing_tensor(name, reader.name)
    return reader
