"""Choices on disk: one small JSON file per question, so that processes never wait for each other.

A file is written whole and then renamed, so readers see all of it or none; two processes that answer the same question
at the same time both write, and either answer will do. A file that is damaged, or answers another question, counts as
missing.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from llmpq.cache_dir import cache_directory
from llmpq.whole_file import write_whole

#: What this process has seen or found: it need not read again, nor measure again where nothing can be written.
_seen: dict[Path, tuple[str, ...]] = {}


def recall(key: Mapping[str, str]) -> tuple[str, ...] | None:
    """The answer remembered for a key, or None."""
    path = _file_of(key)
    if path not in _seen:
        answer = _read(path, key)
        if answer is None:
            return None
        _seen[path] = answer
    return _seen[path]


def remember(key: Mapping[str, str], answer: tuple[str, ...]) -> None:
    """Keeps an answer; where the cache cannot be written, for the life of this process."""
    path = _file_of(key)
    _seen[path] = answer
    with suppress(OSError):
        write_whole(path, json.dumps({"key": dict(key), "answer": answer}, indent=1))


def _file_of(key: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_directory() / "kernels" / f"{digest[:32]}.json"


def _read(path: Path, key: Mapping[str, str]) -> tuple[str, ...] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("key") != key or not isinstance(content.get("answer"), list):
        return None
    return tuple(map(str, content["answer"]))
