"""What is compared: anything that answers prompts, and what one run of it came to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmpq.bench.workload import Workload


@dataclass(frozen=True)
class Run:
    """One run of a workload.

    Attributes:
        wall_s: Seconds from the first prompt to the last token, with the model loaded.
        generated_tokens: Tokens of all answers.
        steps: Seconds since the start, and tokens made since the step before; in order.
        job_s: Seconds of the whole job, with planning and loading from the cache, where the system does that per job.
    """

    wall_s: float
    generated_tokens: int
    steps: tuple[tuple[float, int], ...] = ()
    job_s: float | None = None

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens over the wall time."""
        return self.generated_tokens / self.wall_s

    def tail_ratio(self, share: float = 0.05) -> float | None:
        """The rate over the last `share` of the wall time over the mean rate; None where steps are not known."""
        if not self.steps:
            return None
        since = self.wall_s * (1 - share)
        return sum(tokens for at, tokens in self.steps if at > since) / (self.generated_tokens * share)


class System(Protocol):
    """A system with the model loaded.

    Attributes:
        name: As the user chose it.
        settings: How it is set up, for people.
        version: Its version.
    """

    name: str
    settings: str
    version: str

    async def run(self, workload: Workload) -> Run:
        """Answers all requests; raises MeshError if it cannot."""
        ...

    async def score(self, windows: Sequence[Sequence[int]]) -> float:
        """Sum of the log-probabilities of every token of each window but its first, given those before it."""
        ...
