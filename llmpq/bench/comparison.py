"""A comparison of systems: starts them, lets them take turns, keeps every figure as soon as it is there."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

from llmpq.bench.mesh_system import MeshSystem
from llmpq.bench.model_files import BenchFiles
from llmpq.bench.peer_system import PeerChoice, PeerSystem
from llmpq.bench.system import System
from llmpq.bench.throughput import perplexity, summarized, take_turns
from llmpq.bench.workload import Workload
from llmpq.errors import InvalidInputError, MeshError

#: What must be equal for runs to be added to those of an earlier call.
_SAME = ("model", "workload")


class Comparison:
    """Figures of several systems on one workload.

    Args:
        document: What is known before: machine, model, workload; figures come under `systems`.
        file: Where the document is kept up to date; None for nowhere.
        on_note: Told what is going on.
    """

    def __init__(self, document: dict[str, Any], file: Path | None, on_note: Callable[[str], None]) -> None:
        self.document = document | {"systems": [], "left_out": {}}
        self._file = file
        self._note = on_note
        self._first_turn = 0

    def take_up(self, file: Path) -> None:
        """Takes the systems and runs of an earlier call, so that new runs are added to them; there may be none.

        Raises:
            InvalidInputError: They are of another model or workload.
        """
        if not file.exists():
            return
        earlier = json.loads(file.read_text(encoding="utf-8"))
        for key in _SAME:
            if earlier[key] != self.document[key]:
                raise InvalidInputError(f"{file} holds runs of another {key}: {earlier[key]}.", subject=str(file))
        self.document["systems"] = earlier["systems"]
        turns = [run["turn"] for system in earlier["systems"] for run in system["runs"]]
        self._first_turn = max(turns, default=-1) + 1

    async def measure(
        self,
        files: BenchFiles,
        meshes: Sequence[tuple[str, int, bool]],
        peers: Sequence[PeerChoice],
        work: tuple[Workload, Sequence[Sequence[int]]],
        num_runs: int,
        *,
        has_phases: bool,
    ) -> None:
        """Measures systems; a peer that cannot be started is left out, and why is noted.

        Args:
            files: The model.
            meshes: Scheme and stage servers of each of our meshes, and whether keys and values are cached as int8.
            peers: The other systems.
            work: What is to be run, and windows of token ids to measure perplexity on.
            num_runs: Turns of each system.
            has_phases: Also time the prompts alone.
        """
        workload, windows = work
        _end_on_sigterm()
        async with AsyncExitStack() as stack:
            systems: list[System] = []
            for scheme, num_stages, has_int8_kv_cache in meshes:
                self._note(f"Starting a mesh of {num_stages} at {scheme} ...")
                mesh = MeshSystem.started(
                    str(files.source),
                    scheme,
                    num_stages,
                    has_int8_kv_cache=has_int8_kv_cache,
                    num_systems=len(meshes) + len(peers),
                )
                systems.append(await stack.enter_async_context(mesh))
            for choice in peers:
                self._note(f"Starting {choice.name} ...")
                arguments = _arguments(files, workload, windows)
                try:
                    peer = PeerSystem.started(choice, arguments, files.made / f"{choice.name}.log")
                    systems.append(await stack.enter_async_context(peer))
                except MeshError as error:
                    self._note(error.message)
                    self.document["left_out"][choice.name] = error.message
            for system in systems:
                entry = self._entry(system)
                if windows and entry["perplexity"] is None:
                    entry["perplexity"] = await perplexity(system, windows)
            await take_turns(systems, workload, num_runs, self._keep, has_phases=has_phases)
        self._save()

    def _entry(self, system: System) -> dict[str, Any]:
        """The figures of a system; new ones if it has none."""
        for entry in self.document["systems"]:
            if entry["name"] == system.name:
                return entry  # type: ignore[no-any-return]
        entry = {
            "name": system.name,
            "settings": system.settings,
            "version": system.version,
            "perplexity": None,
            "runs": [],
        }
        self.document["systems"].append(entry)
        return entry

    def _keep(self, system: System, turn: int, figures: dict[str, Any]) -> None:
        self._entry(system)["runs"].append({"turn": self._first_turn + turn} | figures)
        self._note(f"{system.name}: {figures['wall_s']:.2f} s, {figures['tokens_per_s']:.1f} tokens/s")
        self._save()

    def _save(self) -> None:
        """Brings the medians up to date, and the file."""
        summaries = summarized({entry["name"]: entry["runs"] for entry in self.document["systems"]})
        for entry in self.document["systems"]:
            entry.update(summaries[entry["name"]])
        if self._file:
            self._file.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")


def _end_on_sigterm() -> None:
    """Cancels this task on SIGTERM, so that peers, which may be stopped, are ended too."""
    task = cast("asyncio.Task[None]", asyncio.current_task())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _arguments(files: BenchFiles, workload: Workload, windows: Sequence[Sequence[int]]) -> dict[str, Any]:
    return {
        "model": str(files.directory),
        "gguf": files.gguf,
        "threads": len(os.sched_getaffinity(0)),
        "cache": str(files.made),
        "num_sequences": len(workload.prompts),
        "max_length": workload.max_length,
        "num_tokens": workload.num_tokens,
        "max_window": max(map(len, windows), default=0),
    }
