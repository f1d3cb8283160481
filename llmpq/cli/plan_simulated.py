"""`llmpq plan --cluster`: plans for devices that need not be there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq.errors import InvalidInputError
from llmpq.model import read_shape
from llmpq.plan import LengthBucket, PlanningProblem, PlanOptions
from llmpq.scenario import Scenario


@dataclass(frozen=True)
class Simulated:
    """What to plan for.

    Attributes:
        model: A directory, a .gguf file or a name in the catalog; empty for the one that the cluster names.
        cluster: A YAML file or a name in the catalog.
        kernels: Kernel set; empty for the default.
        catalog: Files with further entries of the catalog.
        workload: The requests, unless `lengths` are given.
        lengths: Name of a distribution of lengths.
        num_requests: Requests.
        options: Objective and limits.
    """

    model: str
    cluster: str
    kernels: str
    catalog: tuple[Path, ...]
    workload: tuple[LengthBucket, ...]
    lengths: str
    num_requests: int
    options: PlanOptions

    def scenario(self) -> Scenario:
        """The names and documents for the planner; files are read here, which may be another host.

        Raises:
            NotFoundError, InvalidInputError: As `read_shape`.
            OSError: A file cannot be read.
        """
        is_here = Path(self.model).exists() and bool(self.model)
        is_file = Path(self.cluster).suffix in {".yaml", ".yml"}
        return Scenario(
            model_name=None if is_here else self.model,
            shape=read_shape(self.model) if is_here else None,
            cluster_name=None if is_file else self.cluster,
            cluster_document=_read(Path(self.cluster)) if is_file else None,
            catalog_documents=tuple(_read(path) for path in self.catalog),
            kernels=self.kernels,
            workload=self.workload,
            lengths=self.lengths,
            num_requests=self.num_requests if self.lengths else 0,
            options=self.options,
        )

    def described(self, problem: PlanningProblem) -> dict[str, Any]:
        """What is planned for, as plain values."""
        return {
            "model": self.model or problem.model,
            "cluster": self.cluster,
            "kernels": self.kernels or "modern",
            "batch": self.num_requests,
            "prompt_len": self.lengths or self.workload[0].prompt_tokens,
            "gen_len": self.lengths or self.workload[0].output_tokens,
            "simulated": True,
        }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8.", subject=str(path)) from error
