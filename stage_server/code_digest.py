"""Which code made something that is kept on disk."""

import hashlib
from functools import cache
from pathlib import Path

import quantizer


@cache
def code_digest() -> str:
    """Changes with the Python code that rounds, calibrates and computes, wherever in its packages that is."""
    packages = (Path(quantizer.__file__).parent, Path(__file__).parent)
    sources = sorted(path for package in packages for path in package.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
