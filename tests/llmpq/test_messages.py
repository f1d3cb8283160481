"""Messages to dataclasses and back."""

import pytest
from google.protobuf.message import Message

from llmpq.batch import Batch, BatchOptions
from llmpq.device import DeviceDescription, DeviceProfile, LatencyPoint, ModelPart, Phase
from llmpq.errors import InvalidInputError
from llmpq.messages import from_fields, from_message, to_message
from llmpq.model import ModelShape
from llmpq.plan import (
    LayerPrecision,
    LayerSensitivity,
    LengthBucket,
    Plan,
    PlanEstimate,
    PlanningProblem,
    PlanOptions,
    StageMemory,
    StagePlan,
)
from llmpq.v1 import coordinator_service_pb2, plan_pb2, planner_service_pb2

DEVICE = DeviceDescription("cpu", "A chip", "avx2", 2, 2**40, 2**39, ("w16", "w4"), 4)
PROBLEM = PlanningProblem(
    model="models/m",
    shape=ModelShape(
        "llama", 30, 576, 1536, 9, 3, 64, 49152, 8192, gated_ffn=True, tied_embeddings=True, num_norm_elements=1152
    ),
    devices=(
        DeviceProfile(
            "fast",
            DEVICE,
            (LatencyPoint(ModelPart.LAYER, "w4", Phase.DECODE, 8, 1, 128, 2**35),),
            link_latency_ns=1000,
            link_bytes_per_s=10**9,
        ),
    ),
    workload=(LengthBucket(128, 64, 32),),
    sensitivities=(LayerSensitivity(0, "w4", 0.03),),
    options=PlanOptions(quality_budget=0.0, allowed_schemes=("w4",), group_size=0, num_lanes=2),
)
PLAN = Plan(
    "models/m",
    "llm-pq",
    (StagePlan("fast", 0, (LayerPrecision("w4", 64),), StageMemory(2**33, 2, 3, 4, 5), 1.5, 0.25),),
    2,
    8,
    3,
    100,
    400,
    PlanEstimate(1.0, 0.25, 0.75, 100.0, 1.0, 0.001, 2.5),
).with_hash()


@pytest.mark.parametrize(
    ("value", "message_type"),
    [
        (PROBLEM, planner_service_pb2.PlanningProblem),
        (PLAN, plan_pb2.Plan),
        (DEVICE, plan_pb2.DeviceDescription),
        (BatchOptions(model="m", plan_options=PROBLEM.options), coordinator_service_pb2.BatchOptions),
    ],
)
def test_a_dataclass_survives_the_wire(value: object, message_type: type[Message]) -> None:
    """To a message, through bytes and back gives an equal value: 64-bit integers, enums and nested ones included."""
    raw = to_message(value, message_type).SerializeToString()
    assert from_message(type(value), message_type.FromString(raw)) == value


def test_unset_optional_fields_are_none_and_zero_is_not() -> None:
    """`None` and an unset field are the same thing; a budget or group size of 0 is set."""
    unset = to_message(PlanOptions(), plan_pb2.PlanOptions)
    assert unset.WhichOneof("quality") is None
    assert not unset.HasField("group_size")
    assert from_message(PlanOptions, unset) == PlanOptions()
    zero = to_message(PlanOptions(quality_budget=0.0, group_size=0), plan_pb2.PlanOptions)
    assert zero.WhichOneof("quality") == "quality_budget"
    assert zero.HasField("group_size")


def test_an_unset_enum_is_refused_by_the_name_of_its_field() -> None:
    """UNSPECIFIED is invalid on the wire; the error says where."""
    with pytest.raises(InvalidInputError, match=r"LatencyPoint\.part") as refused:
        from_message(LatencyPoint, plan_pb2.LatencyPoint(phase=plan_pb2.PHASE_DECODE))
    assert refused.value.subject == "part"


def test_a_missing_message_is_refused_by_the_path_to_it() -> None:
    """A problem without a shape, and a device without a description, are named by their path."""
    message = to_message(PROBLEM, planner_service_pb2.PlanningProblem)
    message.devices[0].ClearField("description")
    with pytest.raises(InvalidInputError, match=r"devices\.0\.description"):
        from_message(PlanningProblem, message)


def test_plain_values_become_dataclasses_and_unknown_ones_are_ignored() -> None:
    """Parsed JSON of a newer writer still reads."""
    assert from_fields(LengthBucket, {"prompt_tokens": 1, "output_tokens": "2", "count": 3, "new": 4}) == LengthBucket(
        1,
        2,
        3,
    )
    with pytest.raises(InvalidInputError, match=r"LengthBucket\.count"):
        from_fields(LengthBucket, {"prompt_tokens": 1, "output_tokens": 2})


def test_a_batch_without_plan_or_times_has_none() -> None:
    """Unset messages and timestamps are None, not empty ones."""
    message = coordinator_service_pb2.Batch(batch_id="b", state=coordinator_service_pb2.BATCH_STATE_QUEUED)
    batch = from_message(Batch, message)
    assert (batch.plan, batch.start_time, batch.running_s) == (None, None, 0.0)
