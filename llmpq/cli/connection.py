"""Which mesh a command talks to: one that is running, or one started for the call."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from llmpq.cli.options import COORDINATOR_VARIABLE
from llmpq.cli.terminal import note
from llmpq.client import Client
from llmpq.cluster_file import local_cluster
from llmpq.local_mesh import local_mesh
from llmpq.model import read_shape
from llmpq.plan import PlanOptions


@dataclass(frozen=True)
class MeshChoice:
    """What the user chose with `--coordinator` and `--stages`.

    Attributes:
        coordinator: host:port of a running coordinator; empty for a mesh of the call's own.
        num_stages: Stage servers of that mesh.
    """

    coordinator: str
    num_stages: int

    @classmethod
    def of_flags(cls, coordinator: str, stages: int | None) -> "MeshChoice":
        """Neither flag means the coordinator of the environment, or else a mesh of one stage."""
        if coordinator and stages:
            raise typer.BadParameter("Pass one of --coordinator and --stages, not both.")
        if not stages:
            coordinator = coordinator or os.environ.get(COORDINATOR_VARIABLE, "")
        return cls(coordinator, stages or 1)

    @property
    def is_local(self) -> bool:
        """Whether a mesh is started for the call."""
        return not self.coordinator

    def check_layers(self, plan_options: PlanOptions, model: str) -> None:
        """Refuses precisions for more or fewer layers than the model has, before a mesh is started for nothing.

        Raises:
            typer.BadParameter: Says how many there are and how many there must be.
        """
        num_given = len(plan_options.layer_schemes)
        if not (self.is_local and num_given and model):  # a running coordinator says it at once
            return
        num_layers = read_shape(model).num_layers
        if num_given != num_layers:
            raise typer.BadParameter(f"--precisions is for {num_given} layers, and the model has {num_layers}.")

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        """Yields a client, after starting the mesh if need be."""
        if not self.is_local:
            async with Client(self.coordinator) as client:
                yield client
            return
        note(f"Starting a mesh of {self.num_stages} stage(s) on this machine ...")
        async with local_mesh(local_cluster(self.num_stages)) as address, Client(address) as client:
            yield client


def running(coordinator: str) -> Client:
    """A client of a coordinator that must be running already."""
    if not coordinator:
        message = f"Pass --coordinator HOST:PORT or set {COORDINATOR_VARIABLE}; `llmpq up` starts one."
        raise typer.BadParameter(message)
    return Client(coordinator)


def model_path(model: str) -> str:
    """The model as services can find it: if it is on this host, by its absolute path."""
    return str(Path(model).resolve()) if model and Path(model).exists() else model
