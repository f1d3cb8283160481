"""A coordinator that dies takes nothing with it."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from mesh import Finished, Mesh, completion

from llmpq import BatchState, PlanOptions
from llmpq.v1 import stage_service_pb2, stage_service_pb2_grpc

NUM_REQUESTS = 16
MAX_TOKENS = 192

#: One sequence a frame, so that frames can be counted; two in flight.
OPTIONS = PlanOptions(
    allowed_schemes=("w16",),
    prefill_micro_batch=1,
    decode_micro_batch=1,
    num_lanes=2,
    use_all_devices=True,
)
#: Half of them drawn with a seed: what is drawn must survive as well.
LINES = [
    completion(
        f"request-{number}", "Once upon a time, " * (number % 3 + 1), MAX_TOKENS, temperature=number % 2, seed=number
    )
    for number in range(NUM_REQUESTS)
]


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    """Two stages whose coordinator may die."""
    with Mesh(tmp_path, num_stages=2) as mesh:
        yield mesh


def test_a_killed_coordinator_goes_on_where_it_stopped(mesh: Mesh, stories260k: str) -> None:
    """Killed in mid-batch and started again: the same answers, each once, and nothing finished is computed again."""
    undisturbed = mesh.run(LINES, model=stories260k, plan_options=OPTIONS, ignore_stop=True)
    assert undisturbed.batch.state is BatchState.COMPLETED

    with mesh.client() as client:
        batch_id = client.submit(LINES, model=stories260k, plan_options=OPTIONS, ignore_stop=True).batch_id
        results = client.results(batch_id)
        before = [next(results) for _ in range(NUM_REQUESTS // 4)]
        mesh.coordinator.kill()
        mesh.coordinator.start()
        mesh.coordinator.wait_until_listening()
        after = list(results)
        disturbed = Finished(client.get(batch_id), (*before, *after))
        again = tuple(client.results(batch_id))

    assert after, "the batch had ended before the kill"
    assert disturbed.batch.state is BatchState.COMPLETED
    assert disturbed.batch.generated_tokens == NUM_REQUESTS * MAX_TOKENS
    assert disturbed.texts == undisturbed.texts
    assert len(disturbed.results) == NUM_REQUESTS
    assert all(first.sequence < second.sequence for first, second in pairwise(disturbed.results))
    assert again == disturbed.results, "results of before the kill are the stored ones, word for word"
    assert _frames_since_load(mesh) <= (NUM_REQUESTS - len(before)) * MAX_TOKENS


def _frames_since_load(mesh: Mesh) -> int:
    """Frames that the first stage has computed since the restarted coordinator loaded it."""
    with grpc.insecure_channel(mesh.services["stage-0"].address) as channel:
        stub = stage_service_pb2_grpc.StageServiceStub(channel)
        stage = stub.GetStage(stage_service_pb2.GetStageRequest(), timeout=10)
    assert stage.state == stage_service_pb2.STAGE_STATE_READY
    return stage.frames
