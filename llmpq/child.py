"""Becomes another module that does not outlive its parent: `python -m llmpq.child PARENT_PID MODULE [ARGS]`.

The kernel sends SIGTERM to this process when its parent dies, whichever way; exec keeps that promise. A step of its own
rather than code between fork and exec, which is unsafe in a parent that runs threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Asks for the signal and becomes the module."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    parent_pid, module, *arguments = sys.argv[1:]
    if os.getppid() != int(parent_pid):  # it died before the promise was made
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 no shell is the point


if __name__ == "__main__":
    main()
