"""Other systems, each a process in an environment of its own that speaks as `llmpq.bench.peers` says."""

import asyncio
import json
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from llmpq.bench.system import Run
from llmpq.bench.workload import Workload
from llmpq.errors import InvalidInputError, NotFoundError, UnavailableError

#: Environment variable that names the directory of the peers' environments.
PEERS_VARIABLE = "LLMPQ_PEERS"
#: Systems that are known, and the environment each of them is in; transformers is in our own.
ENVIRONMENTS = {"transformers": "", "vllm": "vllm", "llamacpp": "llamacpp"}
#: What is run of each installed peer, unless the user chooses: its fastest forms.
DEFAULT_PEERS = ("transformers", "vllm-w8a8", "vllm-fp32", "llamacpp-q4_0", "llamacpp-rpc-q8_0")
_SCRIPTS = Path(__file__).parent / "peers"
#: Longest line that a peer may answer.
_MAX_LINE_BYTES = 2**28


@dataclass(frozen=True)
class PeerChoice:
    """A peer as the user names it: `transformers`, `vllm-w8a8`, `llamacpp-rpc-q8_0`.

    Attributes:
        name: That name.
        python: The interpreter of its environment.
    """

    name: str
    python: Path

    @classmethod
    def of_name(cls, name: str, directory: Path | None) -> Self:
        """Finds the environment of a peer.

        Args:
            name: System and variant.
            directory: Where environments are; None for none.

        Raises:
            InvalidInputError: A system that is not known.
            NotFoundError: It has no environment there.
        """
        system = name.partition("-")[0]
        if system not in ENVIRONMENTS:
            raise InvalidInputError(f"'{name}' is not of {', '.join(ENVIRONMENTS)}.", subject=name)
        if not ENVIRONMENTS[system]:
            return cls(name, Path(sys.executable))
        if directory is None:
            message = f"Where is the environment of {system}? Set {PEERS_VARIABLE} or pass --peers."
            raise NotFoundError(message, subject=name)
        python = directory / ENVIRONMENTS[system] / "bin" / "python"
        if not python.exists():
            raise NotFoundError(f"{system} has no environment: there is no {python}.", subject=name)
        return cls(name, python)

    @property
    def module(self) -> str:
        """The script that drives it."""
        return f"{self.name.partition('-')[0]}_peer"

    @property
    def variant(self) -> str:
        """What follows the system's name: precision, and `rpc`."""
        return self.name.partition("-")[2]


def installed_peers(directory: Path | None) -> list[PeerChoice]:
    """The default peers that have an environment."""
    choices = []
    for name in DEFAULT_PEERS:
        try:
            choices.append(PeerChoice.of_name(name, directory))
        except NotFoundError:
            continue
    return choices


class PeerSystem:
    """A peer with the model loaded; make it by `started()`. Its processes are stopped while others have their turn."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.settings = ""
        self.version = ""
        self._process = process
        self._log = log

    @classmethod
    @asynccontextmanager
    async def started(cls, choice: PeerChoice, arguments: Mapping[str, Any], log: Path) -> AsyncIterator["PeerSystem"]:
        """Runs a peer inside the block.

        Args:
            choice: Which.
            arguments: Of its class `Peer`, but for the variant.
            log: File for what it says on standard error.

        Raises:
            UnavailableError: It cannot load the model; names the log.
        """
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                str(choice.python),
                str(_SCRIPTS),
                choice.module,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                limit=_MAX_LINE_BYTES,
                start_new_session=True,  # with all its children a group, to be stopped and ended together
            )
        peer = cls(choice.name, process, log)
        try:
            opened = await peer._ask({**arguments, "variant": choice.variant})
            peer.settings, peer.version = opened["settings"], opened["version"]
            yield peer
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def run(self, workload: Workload) -> Run:
        """See `System`."""
        job = {"prompts": workload.prompts, "max_tokens": workload.max_tokens, "stops": workload.stops}
        answer = await self._ask({"generate": job})
        steps = tuple((at, tokens) for at, tokens in answer["steps"])
        return Run(answer["wall_s"], sum(tokens for _, tokens in steps), steps)

    async def score(self, windows: Sequence[Sequence[int]]) -> float:
        """See `System`."""
        answer = await self._ask({"score": {"windows": windows}})
        return math.fsum(answer["logprobs"])

    async def _ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Lets the processes go on for one job."""
        stdin = cast("asyncio.StreamWriter", self._process.stdin)
        stdout = cast("asyncio.StreamReader", self._process.stdout)
        with suppress(ProcessLookupError, ConnectionError):  # one that has ended answers nothing, see below
            os.killpg(self._process.pid, signal.SIGCONT)
            stdin.write(json.dumps(job).encode() + b"\n")
            await stdin.drain()
        line = await stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise UnavailableError(f"{self.name}: {answer['error']}; see {self._log}.", subject=self.name)
        os.killpg(self._process.pid, signal.SIGSTOP)
        return answer
