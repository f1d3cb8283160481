"""A whole cluster on this host: planner, coordinator and stage servers as processes that end with this one."""

import asyncio
import os
import re
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from llmpq.client import Client
from llmpq.cluster_file import ClusterSpec, StageSpec
from llmpq.errors import UnavailableError

#: Called with a process's name and one line of its log.
LogSink = Callable[[str, str], None]

#: How long a process may take to listen, and all stages to register.
START_S = 120.0
#: How long a process may take to drain after SIGTERM.
STOP_S = 10.0
#: Pause before a process that died is started again.
RESTART_DELAY_S = 1.0
_POLL_S = 0.1
_MAX_LINE_BYTES = 2**20
_LISTENING = re.compile(r"listening on (\S+)")
#: Lines of its log that an error about a dead process quotes.
_QUOTED_LINES = 5


@asynccontextmanager
async def local_mesh(
    cluster: ClusterSpec,
    *,
    on_log: LogSink = lambda _name, _line: None,
    restarts: bool = False,
) -> AsyncIterator[str]:
    """Runs a cluster inside the block, once all its stages are registered; yields the coordinator's address.

    Args:
        cluster: What to start.
        on_log: Gets every line that a process logs.
        restarts: Start a process that dies again, at the same address, rather than ending the block.

    Raises:
        UnavailableError: A process did not start, or died; quotes the end of its log.
    """
    processes: list[MeshProcess] = []

    def add(name: str, module: str, *flags: str, listen: str = "127.0.0.1:0") -> MeshProcess:
        processes.append(MeshProcess(name, module, flags, listen, on_log))
        return processes[-1]

    with _state_directory(cluster) as state:
        try:
            async with asyncio.TaskGroup() as group:
                planner = add("planner", "planner_svc")
                await planner.start()
                planning = ("--planner", planner.address, "--state", str(state))
                coordinator = add("coordinator", "coordinator", *planning, listen=cluster.listen)
                await coordinator.start()
                joining = ("--coordinator", coordinator.address)
                stages = [add(stage.name, "stage_server", *joining, *stage_flags(stage)) for stage in cluster.stages]
                async with asyncio.TaskGroup() as starting:
                    for stage in stages:
                        starting.create_task(stage.start())
                guards = [group.create_task(_guard(process, restarts=restarts)) for process in processes]
                await _wait_for_members(coordinator.address, cluster.stages)
                yield coordinator.address
                for guard in guards:
                    guard.cancel()
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        finally:
            await asyncio.gather(*(process.stop() for process in processes))


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
            start_new_session=True,  # Ctrl-C is for the parent, which then drains its children in order
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
        await asyncio.sleep(_POLL_S)  # for the last lines of its log
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


def stage_flags(stage: StageSpec) -> tuple[str, ...]:
    """Flags of the stage server that `stage` describes, without addresses."""
    flags = ["--name", stage.name, "--device", stage.device]
    if stage.cpu_class:
        flags += ["--cpu-class", stage.cpu_class]
    if stage.cores:
        flags += ["--cores", ",".join(str(core) for core in stage.cores)]
    if stage.memory_budget_bytes:
        flags += ["--memory-budget", str(stage.memory_budget_bytes)]
    return tuple(flags)


@contextmanager
def _state_directory(cluster: ClusterSpec) -> Iterator[Path]:
    if cluster.state:
        yield cluster.state
        return
    with tempfile.TemporaryDirectory(prefix="llmpq-") as directory:
        yield Path(directory)


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group of groups: what a task group wraps, the caller wants plain."""
    error = failures.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _guard(process: MeshProcess, *, restarts: bool) -> None:
    while True:
        error = await process.died()
        if not restarts:
            raise error
        process.on_log(process.name, f"{error.message}\nStarting it again.")
        await asyncio.sleep(RESTART_DELAY_S)
        with suppress(UnavailableError):  # the next turn finds it dead and says so
            await process.start()


async def _wait_for_members(coordinator: str, stages: Sequence[StageSpec]) -> None:
    expected = {stage.name for stage in stages}
    missing = expected
    async with Client(coordinator) as client:
        try:
            async with asyncio.timeout(START_S):
                while missing:
                    await asyncio.sleep(_POLL_S)
                    missing = expected - {stage.device_id for stage in (await client.cluster()).stages}
        except TimeoutError:
            names = ", ".join(sorted(missing))
            message = f"Not registered with the coordinator after {START_S:.0f} s: {names}."
            raise UnavailableError(message, subject=names) from None
