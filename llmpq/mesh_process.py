"""One server process, as the parent that started it sees it."""

import asyncio
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from llmpq.errors import UnavailableError

#: Called with a process's name and one line of its log.
LogSink = Callable[[str, str], None]

#: How long a process may take to listen.
START_S = 120.0
#: How long a process may take to drain after SIGTERM.
STOP_S = 10.0
_LISTENING = re.compile(r"listening on (\S+)")
_MAX_LINE_BYTES = 2**20
#: Lines of its log that an error about a dead process quotes.
_QUOTED_LINES = 5
#: How long the last lines of a dead process may take to arrive.
_LAST_LINES_S = 0.1


@dataclass
class MeshProcess:
    """One server process.

    Attributes:
        name: What its log lines and errors call it.
        module: Python module to run.
        flags: Its flags, without `--listen`.
        address: host:port to listen on; once started, with the port that was really bound.
        on_log: Gets every line that it logs.
    """

    name: str
    module: str
    flags: Sequence[str]
    address: str
    on_log: LogSink
    _process: asyncio.subprocess.Process = field(init=False)
    _reader: asyncio.Task[None] | None = field(default=None, init=False)
    _last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_QUOTED_LINES), init=False)

    async def start(self) -> None:
        """Starts it; returns once it listens.

        Raises:
            UnavailableError: It ended, or said nothing for `START_S`.
        """
        command = ("-m", "llmpq.child", str(os.getpid()), self.module, "--listen", self.address, *self.flags)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_MAX_LINE_BYTES,
            start_new_session=True,  # Ctrl-C is for the parent, which then drains its children
        )
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        output = cast("asyncio.StreamReader", self._process.stdout)
        self._reader = asyncio.create_task(self._read(output, listening))
        try:
            async with asyncio.timeout(START_S):
                self.address = await listening
        except TimeoutError:
            raise self._failure(f"did not listen within {START_S:.0f} s") from None
        except EOFError:
            raise self._failure(f"ended with status {await self._process.wait()} before it listened") from None

    async def died(self) -> UnavailableError:
        """Waits until it ends; returns the error that says so."""
        status = await self._process.wait()
        await asyncio.sleep(_LAST_LINES_S)
        return self._failure(f"ended with status {status}")

    async def stop(self) -> None:
        """Drains it; kills it if that takes longer than `STOP_S`."""
        if self._reader is None:  # it was never started
            return
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
        await self._reader

    async def _read(self, output: asyncio.StreamReader, listening: asyncio.Future[str]) -> None:
        async for raw in output:
            line = raw.decode(errors="replace").rstrip()
            announced = _LISTENING.fullmatch(line)
            if announced and not listening.done():
                listening.set_result(announced[1])
                continue
            self._last_lines.append(line)
            self.on_log(self.name, line)
        if not listening.done():
            listening.set_exception(EOFError())

    def _failure(self, what: str) -> UnavailableError:
        log = "".join(f"\n  {line}" for line in self._last_lines)
        message = f"The {self.module} process '{self.name}' {what}. The end of its log:{log or ' (empty)'}"
        return UnavailableError(message, reason="PROCESS_DIED", subject=self.name)
