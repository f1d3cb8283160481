"""What transformers makes of a model's files, kept on disk: importing that package takes a process seconds."""

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llmpq
from llmpq.cache_dir import cache_directory
from llmpq.code_digest import code_digest
from llmpq.whole_file import write_whole

#: What has a say in it, beside the model's files and our own code.
_PACKAGES = ("gguf", "optimum", "tokenizers", "transformers")
#: transformers and optimum import their parts when they are first asked for, which fails if two threads ask at a time.
IMPORTING = threading.RLock()


def made_once(kind: str, fingerprint: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Something that is made of a model's files: as it was made before by the same code, or made now.

    Args:
        kind: What it is; names its directory in the cache.
        fingerprint: Of the files.
        make: Makes it, as what JSON can hold; may import transformers, for it never runs in two threads at a time.
    """
    packages = {package: version(package) for package in _PACKAGES}
    subject = repr((fingerprint, packages, code_digest(Path(llmpq.__file__))))
    path = cache_directory() / kind / f"{hashlib.sha256(subject.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError):
        return _object(path.read_text(encoding="utf-8"))
    with IMPORTING:
        text = json.dumps(make())
    with suppress(OSError):  # a cache that cannot be written costs time only
        write_whole(path, text)
    return _object(text)


def _object(text: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(text)
    return made
