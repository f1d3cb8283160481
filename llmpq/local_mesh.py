"""A whole cluster on this host: planner, coordinator and stage servers as processes that end with this one."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from llmpq.client import Client
from llmpq.cluster_file import ClusterSpec, StageSpec
from llmpq.errors import InvalidInputError, UnavailableError
from llmpq.mesh_process import START_S, LogSink, MeshProcess
from llmpq.reserved_port import reserved_port

#: Pause before a process that died is started again.
RESTART_DELAY_S = 1.0
_ANY_PORT = "127.0.0.1:0"
_POLL_S = 0.02


@asynccontextmanager
async def local_mesh(
    cluster: ClusterSpec,
    *,
    on_log: LogSink = lambda _name, _line: None,
    restarts: bool = False,
) -> AsyncIterator[str]:
    """Runs a cluster inside the block, once all its stages are registered; yields the coordinator's address.

    All processes start at once, for most have a second of imports; who calls another waits until it is there.

    Args:
        cluster: What to start.
        on_log: Gets every line that a process logs.
        restarts: Start a process that dies again, at the same address, rather than ending the block.

    Raises:
        InvalidInputError: The state directory cannot be made, or the coordinator's address is not this machine's.
        UnavailableError: A process did not start, or died; quotes the end of its log.
    """
    with (
        _state_directory(cluster) as state,
        reserved_port(_ANY_PORT) as planner,
        reserved_port(cluster.listen) as coordinator,
    ):
        planning, joining = ("--planner", planner, "--state", str(state)), ("--coordinator", coordinator)
        processes = [
            MeshProcess("planner", "planner_svc", (), planner, on_log),
            MeshProcess("coordinator", "coordinator", planning, coordinator, on_log),
            *(
                MeshProcess(stage.name, "stage_server", (*joining, *stage_flags(stage)), _ANY_PORT, on_log)
                for stage in cluster.stages
            ),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                async with asyncio.TaskGroup() as starting:
                    for process in processes:
                        starting.create_task(process.start())
                guards = [group.create_task(_guard(process, restarts=restarts)) for process in processes]
                await _wait_for_members(coordinator, cluster.stages)
                yield coordinator
                for guard in guards:
                    guard.cancel()
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        finally:
            await asyncio.gather(*(process.stop() for process in processes))


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
        try:
            cluster.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"Cannot make the state directory '{cluster.state}': {error.strerror}."
            raise InvalidInputError(message, subject="state") from error
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
