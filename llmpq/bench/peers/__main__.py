"""One other system as a process: `PYTHON llmpq/bench/peers MODULE` reads jobs and writes answers, a JSON line each.

The first job holds the arguments of the module's class `Peer`, which loads the model. Each further one is one of

    {"generate": {"prompts": [[token, ...], ...], "max_tokens": [number, ...], "stops": [token, ...]}}
    {"score": {"windows": [[token, ...], ...]}}

and is answered by the seconds of the run and what each of its steps made, or by the log-probability of each window. A
job that fails is answered by {"error": ...} and ends the process. Python runs a directory with that directory first on
its path, so the environment needs the system and nothing of llmpq.
"""

import importlib
import json
import os
import sys
import time
from typing import Any, TextIO


def main() -> None:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between the answers
    jobs = map(json.loads, sys.stdin)
    try:
        peer = importlib.import_module(sys.argv[1]).Peer(**next(jobs))
        _say(answers, {"version": peer.version, "settings": peer.settings})
        for job in jobs:
            _say(answers, _generated(peer, job["generate"]) if "generate" in job else _scored(peer, job["score"]))
    except Exception as error:  # the edge of the process: the parent tells the user
        _say(answers, {"error": f"{type(error).__name__}: {error}"})
        raise


def _generated(peer: Any, work: dict[str, Any]) -> dict[str, Any]:
    steps: list[tuple[float, int]] = []
    started = time.perf_counter()

    def on_step(num_tokens: int) -> None:
        steps.append((time.perf_counter() - started, num_tokens))

    peer.generate(work["prompts"], work["max_tokens"], work["stops"], on_step)
    return {"wall_s": time.perf_counter() - started, "steps": steps}


def _scored(peer: Any, work: dict[str, Any]) -> dict[str, Any]:
    return {"logprobs": [peer.score(window) for window in work["windows"]]}


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
