"""A mesh of real processes, started one by one as an operator would start them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Self

from llmpq import Batch, Result, SyncClient

ROOT = Path(__file__).parent.parent.parent
STOP_TIMEOUT_S = 20


class Service:
    """One process of the mesh.

    Args:
        module: What to run: `python -m MODULE`.
        flags: Its flags, but for `--listen`.
        log: File for what it writes on standard error.
    """

    def __init__(self, module: str, *flags: str, log: Path) -> None:
        self._module = module
        self._flags = flags
        self.log = log
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        """Starts the process, the second time at the same address; it does not listen yet."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self._module, "--listen", self.address, *self._flags],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait_until_listening(self) -> Self:
        """Returns once the process can be called."""
        assert self.process.stdout is not None
        announcement = self.process.stdout.readline()
        assert announcement.startswith("listening on "), (
            f"{self._module} did not start:\n{self.log.read_text()[-4000:]}"
        )
        self.address = announcement.split()[-1]
        return self

    def kill(self) -> None:
        """Ends the process as a power cut would."""
        self.process.kill()
        self.wait()

    def stop(self) -> int:
        """Asks the process to end; returns its exit code."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Waits for the end of the process; returns its exit code."""
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()


@dataclass(frozen=True)
class Finished:
    """A batch in its final state, with its results in the order in which they came."""

    batch: Batch
    results: tuple[Result, ...]

    @property
    def texts(self) -> dict[str, str]:
        """The text of each answer by custom_id."""
        return {result.custom_id: answer_of(result)["choices"][0]["text"] for result in self.answered}

    @property
    def answered(self) -> list[Result]:
        """Results that are not errors."""
        return [result for result in self.results if not result.is_error]

    @property
    def errors(self) -> dict[int, dict[str, Any]]:
        """The error of each refused line by line number."""
        return {result.line_number: json.loads(result.json)["error"] for result in self.results if result.is_error}


def answer_of(result: Result) -> dict[str, Any]:
    """The body of a completion."""
    body: dict[str, Any] = json.loads(result.json)["response"]["body"]
    return body


def completion(custom_id: str, prompt: str | list[int], max_tokens: int, **body: Any) -> dict[str, Any]:
    """A line of a batch: a greedy completion unless `body` says otherwise."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0} | body,
    }


@dataclass
class Mesh:
    """Planner, coordinator and stage servers; ends them on leaving the block.

    Attributes:
        directory: For logs and the coordinator's state.
        num_stages: Stage servers; each has one of this machine's cores, in turn.
        coordinator_flags: Further flags of the coordinator.
        stage_flags: Further flags of every stage server.
        services: All processes by name: planner, coordinator, stage-0 and so on.
    """

    directory: Path
    num_stages: int
    coordinator_flags: tuple[str, ...] = ()
    stage_flags: tuple[str, ...] = ()
    services: dict[str, Service] = field(default_factory=dict)

    def __enter__(self) -> Self:
        """Starts everything and waits until every stage is a member."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.callback(self._stop)
            self.planner = self._start("planner", "planner_svc").wait_until_listening()
            state = ("--planner", self.planner.address, "--state", str(self.directory / "state"))
            self.coordinator = self._start("coordinator", "coordinator", *state, *self.coordinator_flags)
            self.coordinator.wait_until_listening()
            cores = sorted(os.sched_getaffinity(0))
            for name, core in zip(self.stage_names, cycle(cores), strict=False):
                flags = ("--coordinator", self.coordinator.address, "--name", name, "--cores", str(core))
                self._start(name, "stage_server", *flags, *self.stage_flags)
            for name in self.stage_names:
                self.services[name].wait_until_listening()
            self._wait_for_members()
            self._running = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops what still runs."""
        self._running.close()

    @property
    def stage_names(self) -> list[str]:
        """Names of the stage servers' devices."""
        return [f"stage-{index}" for index in range(self.num_stages)]

    def client(self) -> SyncClient:
        """A client of the coordinator; use it as a context manager."""
        return SyncClient(self.coordinator.address)

    def run(self, lines: Iterable[str | Mapping[str, Any]], *, model: str, **options: Any) -> Finished:
        """Runs a batch to its end."""
        with self.client() as client:
            batch = client.submit(lines, model=model, **options)
            results = tuple(client.results(batch.batch_id))
            return Finished(client.get(batch.batch_id), results)

    def _wait_for_stages(self) -> None:
        with self.client() as client:
            while len(client.cluster().stages) < self.num_stages:
                time.sleep(0.1)

    def _start(self, name: str, module: str, *flags: str) -> Service:
        self.services[name] = Service(module, *flags, log=self.directory / f"{name}.log")
        return self.services[name]

    def _stop(self) -> None:
        running = [service for service in self.services.values() if service.process.poll() is None]
        for service in running:
            service.process.terminate()
        for service in running:
            service.wait()

    def _wait_for_members(self) -> None:
        with self.client() as client:
            while len(client.cluster().stages) < self.num_stages:
                time.sleep(0.1)
