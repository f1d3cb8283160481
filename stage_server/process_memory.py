"""What this process takes of the host's memory."""

import re
from pathlib import Path

_STATUS = Path("/proc/self/status")
_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB$", re.MULTILINE)


def process_bytes() -> int:
    """Resident bytes that no file backs: code and mapped files do not count. 0 where Linux does not say."""
    found = _ANONYMOUS.search(_STATUS.read_text()) if _STATUS.is_file() else None
    return int(found[1]) * 1024 if found else 0
