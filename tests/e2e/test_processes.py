"""What every process owes to those who operate it."""

from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from mesh import Mesh

SERVICES = {
    "planner": ["llmpq.v1.PlannerService"],
    "coordinator": ["llmpq.v1.CoordinatorService", "llmpq.v1.ActivationService"],
    "stage-0": ["llmpq.v1.StageService", "llmpq.v1.ActivationService"],
}


@pytest.mark.parametrize("process", SERVICES)
def test_health_is_reported(two_stages: Mesh, process: str) -> None:
    """A process that listens says SERVING for itself and for each of its services."""
    with grpc.insecure_channel(two_stages.services[process].address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES[process]):
            response = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert response.status == health_pb2.HealthCheckResponse.SERVING, service


@pytest.mark.parametrize("process", SERVICES)
def test_services_are_found_by_reflection(two_stages: Mesh, process: str) -> None:
    """A client without the .proto files learns services and methods from the process itself."""
    with grpc.insecure_channel(two_stages.services[process].address) as channel:
        reflection = ProtoReflectionDescriptorDatabase(channel)
        assert {*SERVICES[process], "grpc.health.v1.Health"} <= set(reflection.get_services())
        for service in SERVICES[process]:
            file = reflection.FindFileContainingSymbol(service)
            (described,) = (found for found in file.service if service.endswith(f".{found.name}"))
            assert described.method


def test_sigterm_ends_every_process_cleanly(tmp_path: Path) -> None:
    """A process asked to end drains and exits with code 0."""
    with Mesh(tmp_path, num_stages=1) as mesh:
        exit_codes = {name: service.stop() for name, service in reversed(mesh.services.items())}

    assert exit_codes == {"stage-0": 0, "coordinator": 0, "planner": 0}
