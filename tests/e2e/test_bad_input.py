"""What is wrong is named, with the right code, and nothing else suffers from it."""

import json
import re
import shutil
import zlib
from array import array
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from mesh import Mesh, completion
from safetensors.numpy import load_file, save_file

from llmpq import BatchState, PlanOptions
from llmpq.errors import InvalidInputError, NotFoundError, OverloadedError
from llmpq.v1 import activation_service_pb2 as frames_pb
from llmpq.v1 import activation_service_pb2_grpc, plan_pb2, stage_service_pb2_grpc
from llmpq.v1 import stage_service_pb2 as stage_pb

GOOD = completion("good", "Once upon a time", 8)
MISSING = "model.layers.3.mlp.up_proj.weight"


def test_bad_lines_harm_no_other(two_stages: Mesh, stories260k: str) -> None:
    """Each line that cannot be run is answered with an error that names its line and what is wrong; the rest is run."""
    lines = [
        GOOD,
        '{"custom_id": "cut short", "method": "POST"',
        "",
        completion("good", "a second one of that name", 8),
        completion("long", "time " * 600, 8),
        completion("greedy", "Once", 511),
        completion("other", "Once", 8) | {"url": "/v1/embeddings"},
        completion("cold", "Once", 8, temperature=-1),
        completion("also good", "Lily", 8),
    ]

    finished = two_stages.run(lines, model=stories260k)

    assert finished.batch.state is BatchState.COMPLETED
    assert set(finished.texts) == {"good", "also good"}
    assert {number: error["code"] for number, error in finished.errors.items()} == {
        2: "invalid_json_line",
        4: "duplicate_custom_id",
        5: "context_length_exceeded",
        6: "context_length_exceeded",
        7: "invalid_url",
        8: "invalid_value",
    }
    assert all(error["line"] == number for number, error in finished.errors.items())
    assert "line 1" in finished.errors[4]["message"]
    assert "512" in finished.errors[5]["message"]
    assert "temperature" in finished.errors[8]["message"]
    batch = finished.batch
    assert (batch.requests_total, batch.requests_completed, batch.requests_failed) == (8, 2, 6)


def test_an_unknown_model_is_refused(two_stages: Mesh) -> None:
    """A model that is not there is NOT_FOUND when it is submitted, by name."""
    with two_stages.client() as client, pytest.raises(NotFoundError, match="no/such/model"):
        client.submit([GOOD], model="no/such/model")


def test_an_unknown_family_is_refused(two_stages: Mesh, tmp_path: Path) -> None:
    """A model of a family that no stage can run is INVALID_ARGUMENT, with the families that can be."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))

    with two_stages.client() as client, pytest.raises(InvalidInputError, match=r"gpt2.*llama, .*opt"):
        client.submit([GOOD], model=str(tmp_path))


def test_an_unknown_scheme_is_refused(two_stages: Mesh, stories260k: str) -> None:
    """A scheme that does not exist is INVALID_ARGUMENT when it is submitted, with those that do."""
    options = PlanOptions(allowed_schemes=("w16", "w2"))

    with two_stages.client() as client, pytest.raises(InvalidInputError, match=r"w2.*w16, w8, w8a8, w4, w3"):
        client.submit([GOOD], model=stories260k, plan_options=options)


def test_a_missing_tensor_fails_the_batch_by_name(two_stages: Mesh, stories260k: str, tmp_path: Path) -> None:
    """A batch whose model lacks a tensor fails and says which; its lines get errors, and the next batch is run."""
    model = shutil.copytree(stories260k, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    del tensors[MISSING]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    finished = two_stages.run([GOOD], model=str(model))

    assert finished.batch.state is BatchState.FAILED
    assert MISSING in finished.batch.status_message
    assert list(finished.errors) == [1]
    assert two_stages.run([GOOD], model=stories260k).batch.state is BatchState.COMPLETED


def test_a_plan_that_cannot_fit_names_device_and_bytes(tmp_path: Path, stories260k: str) -> None:
    """A model too large for the cluster at every precision fails the batch; the message has the bytes."""
    with Mesh(tmp_path, num_stages=1, stage_flags=("--memory-budget", "100kB")) as mesh:
        finished = mesh.run([GOOD], model=stories260k)

    assert finished.batch.state is BatchState.FAILED
    assert re.search(r"stage-0.*\d[\d,]* bytes short", finished.batch.status_message)


def test_a_slice_that_cannot_fit_is_refused(two_stages: Mesh, stories260k: str) -> None:
    """LoadStage of more than the budget is FAILED_PRECONDITION, and PreconditionFailure names the device."""
    request = _load_request(stories260k, scheme="w16", num_slots=2**31)

    with grpc.insecure_channel(two_stages.services["stage-0"].address) as channel:
        error = _error_of(stage_service_pb2_grpc.StageServiceStub(channel).LoadStage(request, timeout=30))

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    failure = _detail(error, error_details_pb2.PreconditionFailure)
    assert failure.violations[0].subject == "stage-0"
    assert int(_detail(error, error_details_pb2.ErrorInfo).metadata["short_bytes"]) > 2**31


def test_a_slice_at_an_unknown_precision_is_refused(two_stages: Mesh, stories260k: str) -> None:
    """LoadStage at a scheme that does not exist is INVALID_ARGUMENT, and BadRequest describes it."""
    request = _load_request(stories260k, scheme="w2", num_slots=1)

    with grpc.insecure_channel(two_stages.services["stage-0"].address) as channel:
        error = _error_of(stage_service_pb2_grpc.StageServiceStub(channel).LoadStage(request, timeout=30))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "w2" in _detail(error, error_details_pb2.BadRequest).field_violations[0].description


@pytest.mark.parametrize(
    ("deployment_id", "crc_error", "code"),
    [
        ("another", 0, grpc.StatusCode.FAILED_PRECONDITION),
        ("another", 1, grpc.StatusCode.DATA_LOSS),
    ],
    ids=["of another deployment", "with a bad checksum"],
)
def test_a_wrong_frame_is_refused(
    two_stages: Mesh, stories260k: str, deployment_id: str, crc_error: int, code: grpc.StatusCode
) -> None:
    """A stage that serves a deployment refuses a wrong frame of an ordinary stub, and goes on serving."""
    before = two_stages.run([GOOD], model=stories260k).texts
    payload = array("i", [1, 403, 407]).tobytes()
    frame = frames_pb.ForwardRequest(
        deployment_id=deployment_id,
        frame_id=7,
        phase=plan_pb2.PHASE_PREFILL,
        slots=[0],
        starts=[0],
        counts=[3],
        data_type=frames_pb.DATA_TYPE_INT32,
        dimensions=[3],
        payload_crc32=zlib.crc32(payload) ^ crc_error,
        payload=payload,
    )

    with grpc.insecure_channel(two_stages.services["stage-0"].address) as channel:
        stub = activation_service_pb2_grpc.ActivationServiceStub(channel)
        error = _error_of(stub.Forward(iter([frame]), timeout=30))

    assert error.code() is code
    assert ("frame 7" if crc_error else "another") in _detail(error, error_details_pb2.ErrorInfo).metadata["subject"]
    assert two_stages.run([GOOD], model=stories260k).texts == before


@pytest.mark.parametrize(
    ("cuts", "problem"),
    [
        ([(7, 1, 1, True)], "row 1 came without those before"),
        ([(7, 0, 1, True), (7, 2, 1, False)], "after 1 of 3 rows row 2 came"),
        ([(7, 0, 1, True), (8, 0, 3, False)], "after 1 of 3 rows frame 8"),
        ([(7, 0, 1, True), (7, 1, 1, False)], "after 2 of 3 rows no more were to come"),
        ([(7, 0, 1, True), (7, 1, 3, False)], "no rows of 4 that are missing"),
        ([(7, 0, 2, True)], "after 2 of 3 rows the stream ended"),
    ],
    ids=["no beginning", "a gap", "another frame between", "too few rows", "too many rows", "no end"],
)
def test_messages_that_make_no_frame_are_refused(
    two_stages: Mesh, stories260k: str, cuts: list[tuple[int, int, int, bool]], problem: str
) -> None:
    """A stage refuses rows that do not follow one another as INVALID_ARGUMENT, names the frame, and goes on serving."""
    before = two_stages.run([GOOD], model=stories260k).texts
    messages = [_rows(*cut) for cut in cuts]

    with grpc.insecure_channel(two_stages.services["stage-0"].address) as channel:
        stub = activation_service_pb2_grpc.ActivationServiceStub(channel)
        error = _error_of(stub.Forward(iter(messages), timeout=30))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    violation = _detail(error, error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == "frame 7"
    assert problem in violation.description
    assert two_stages.run([GOOD], model=stories260k).texts == before


def test_a_full_queue_says_when_to_come_again(tmp_path: Path, stories260k: str) -> None:
    """A batch that the queue cannot take is RESOURCE_EXHAUSTED with a time to wait, and is not stored."""
    lines = [completion(str(number), "Once", 8) for number in range(3)]
    with (
        Mesh(tmp_path, num_stages=0, coordinator_flags=("--max-queued-requests", "4")) as mesh,
        mesh.client() as client,
    ):
        first = client.submit(lines, model=stories260k)
        with pytest.raises(OverloadedError) as refusal:
            client.submit(lines, model=stories260k)
        stored = [batch.batch_id for batch in client.list()]

    assert refusal.value.retry_after_s > 0
    assert stored == [first.batch_id]


def _rows(frame_id: int, first_row: int, num_rows: int, has_more: bool) -> frames_pb.ForwardRequest:  # noqa: FBT001 a row of a table
    """A message with some rows of a frame of three tokens."""
    payload = array("i", range(num_rows)).tobytes()
    return frames_pb.ForwardRequest(
        deployment_id="another",
        frame_id=frame_id,
        phase=plan_pb2.PHASE_PREFILL,
        slots=[0],
        starts=[0],
        counts=[3],
        data_type=frames_pb.DATA_TYPE_INT32,
        dimensions=[3],
        payload_crc32=zlib.crc32(payload),
        first_row=first_row,
        has_more=has_more,
        payload=payload,
    )


def _load_request(model: str, *, scheme: str, num_slots: int) -> stage_pb.LoadStageRequest:
    return stage_pb.LoadStageRequest(
        deployment_id="too much",
        model=model,
        num_stages=1,
        layers=[plan_pb2.LayerPrecision(scheme=scheme)] * 5,
        num_slots=num_slots,
        max_sequence_tokens=512,
        max_frame_tokens=512,
        next_address="127.0.0.1:1",
    )


def _error_of(call: grpc.Call) -> grpc.RpcError:
    """The error that a streaming call ends with."""
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    return raised.value


def _detail(error: grpc.RpcError, message_type: type) -> object:
    """The google.rpc detail of one type that an error carries."""
    (raw,) = (value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
    for detail in status_pb2.Status.FromString(raw).details:
        if detail.Is(message_type.DESCRIPTOR):
            message = message_type()
            detail.Unpack(message)
            return message
    raise AssertionError(f"no {message_type.__name__}")
