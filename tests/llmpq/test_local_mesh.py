"""A cluster on this host: real processes, from start to drain."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from llmpq.client import Client
from llmpq.cluster_file import ClusterSpec, StageSpec
from llmpq.errors import InvalidInputError, UnavailableError
from llmpq.local_mesh import local_mesh, stage_flags
from llmpq.mesh_process import MeshProcess
from llmpq.reserved_port import reserved_port
from llmpq.rpc import open_channel, serving

STORIES = Path(__file__).parents[1] / "data" / "stories260K"


def planner(lines: list[str] | None = None) -> MeshProcess:
    """A planner that is not yet started."""
    log = [] if lines is None else lines
    return MeshProcess("planner", "planner_svc", (), "127.0.0.1:0", lambda _name, line: log.append(line))


def wait_until(holds: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    """Waits for something that happens in other processes."""
    give_up_at = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < give_up_at, "it did not happen"
        time.sleep(0.05)


async def test_a_process_is_ready_when_started_and_gone_when_stopped() -> None:
    """`start` returns with the port that was bound; `stop` drains, and the log was passed on."""
    lines: list[str] = []
    process = planner(lines)
    await process.start()
    async with open_channel(process.address) as channel:
        health = await HealthStub(channel).Check(HealthCheckRequest(), timeout=10)
    assert health.status == HealthCheckResponse.SERVING
    await process.stop()
    assert process._process.returncode == 0
    assert any("server.stopped" in line for line in lines)


async def test_a_process_that_does_not_start_is_quoted() -> None:
    """The error names the process and ends with what it last said."""
    process = MeshProcess("odd", "llmpq.no_such_module", (), "127.0.0.1:0", lambda _name, _line: None)
    with pytest.raises(UnavailableError, match=r"'odd' ended with status 1 before it listened[\s\S]*No module named"):
        await process.start()
    await process.stop()


async def test_a_reserved_port_is_nobody_elses_until_a_server_listens_at_it() -> None:
    """Others that want any port get another one, and a gRPC server still gets this one."""
    with reserved_port("127.0.0.1:0") as address:
        others = [socket.create_server(("127.0.0.1", 0)) for _ in range(50)]
        assert address not in {f"127.0.0.1:{other.getsockname()[1]}" for other in others}
        for other in others:
            other.close()
        async with serving(address, lambda _: None, []) as server:
            assert server.address == address
            async with open_channel(address) as channel:
                health = await HealthStub(channel).Check(HealthCheckRequest(), timeout=10)
    assert health.status == HealthCheckResponse.SERVING


def test_an_address_of_another_machine_cannot_be_reserved() -> None:
    """The error names it."""
    with pytest.raises(InvalidInputError, match=r"192\.0\.2\.1:0"), reserved_port("192.0.2.1:0"):
        pass


async def test_a_dead_process_ends_the_block_with_its_name(tmp_path: Path) -> None:
    """Without restarts, whoever works inside the block learns which process died."""
    cluster = ClusterSpec((StageSpec("only", memory_budget_bytes=10**8),), state=tmp_path)
    before = set(psutil.Process().children())

    async def work_until_the_stage_dies() -> None:
        async with local_mesh(cluster) as coordinator, Client(coordinator) as client:
            assert [stage.device_id for stage in (await client.cluster()).stages] == ["only"]
            _stage_of(os.getpid(), "only").kill()
            await asyncio.sleep(60)

    with pytest.raises(UnavailableError, match="'only' ended with status -9"):
        await work_until_the_stage_dies()
    assert set(psutil.Process().children()) <= before


def test_children_do_not_outlive_a_parent_that_is_killed() -> None:
    """Even SIGKILL of the parent, which it cannot see coming, ends its processes."""
    code = (
        "import asyncio; from llmpq.mesh_process import MeshProcess\n"
        "async def main():\n"
        "    process = MeshProcess('p', 'planner_svc', (), '127.0.0.1:0', lambda name, line: None)\n"
        "    await process.start()\n"
        "    print(process._process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        parent.kill()
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_a_stage_is_described_by_flags() -> None:
    """Only what the specification sets is passed on; the rest is the stage server's own default."""
    assert stage_flags(StageSpec("a")) == ("--name", "a", "--device", "cpu")
    full = StageSpec("b", "cpu", "sse4", (0, 2), 1000)
    assert stage_flags(full)[4:] == ("--cpu-class", "sse4", "--cores", "0,2", "--memory-budget", "1000")


def test_run_batch_starts_a_mesh_of_its_own(tmp_path: Path) -> None:
    """One command, no service running: two stages are started, really used, and gone afterwards."""
    prompts, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    request = {"custom_id": "tale", "method": "POST", "url": "/v1/completions", "body": body}
    prompts.write_text(json.dumps(request) + "\n")
    command = [sys.executable, "-m", "llmpq.cli", "run-batch", "-i", prompts, "-o", output, "--model", STORIES]
    done = subprocess.run(
        [*command, "--stages", "2", "--scheme", "w16", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["requests_completed"], document["generated_tokens"]) == (1, 8)
    assert [stage["precisions"].keys() for stage in document["stages"]] == [{"w16"}, {"w16"}]
    [answer] = [json.loads(line) for line in output.read_text().splitlines()]
    assert answer["response"]["body"]["choices"][0]["text"].startswith(", there was")


def test_up_restarts_what_dies_and_drains_at_the_end(tmp_path: Path) -> None:
    """A killed stage registers again under its name; SIGTERM ends all processes and the command with status 0."""
    cluster_file = tmp_path / "cluster.yaml"
    cluster_file.write_text("state: jobs\nstages: [{name: a, memory_budget: 100MB}]\n")
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "llmpq.cli", "up", cluster_file, "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        document = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")
        assert document["stages"] == ["a"]
        stage = _stage_of(process.pid, "a")
        os.kill(stage.pid, signal.SIGKILL)
        wait_until(lambda: _registered(document["coordinator"], since=stage.create_time() + 1) == ["a"])
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert not [child for child in children if child.is_running()]
    assert "Starting it again." in (tmp_path / "log").read_text()


def _stage_of(pid: int, name: str) -> psutil.Process:
    """The stage server of that name that a process has started; other tests' meshes may be its children too."""
    wanted = {"stage_server", name}
    [stage] = [child for child in psutil.Process(pid).children() if wanted <= set(child.cmdline())]
    return stage


def _registered(coordinator: str, *, since: float) -> list[str]:
    """Members that registered after a time, in seconds since the epoch."""

    async def members() -> list[str]:
        async with Client(coordinator) as client:
            stages = (await client.cluster()).stages
        return [stage.device_id for stage in stages if stage.register_time and stage.register_time.timestamp() > since]

    return asyncio.run(members())
