"""Which code made something that is kept on disk."""

import hashlib
from functools import cache
from pathlib import Path


@cache
def code_digest(*packages: Path) -> str:
    """Changes with the Python code of some packages, each named by its `__init__.py`."""
    sources = sorted(path for package in packages for path in package.parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
