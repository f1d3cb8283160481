"""Frames on their way into the pipeline and out of it."""

from array import array
from dataclasses import replace

import pytest
from bench import Bench
from raw_stream import forward_messages

from coordinator.pipeline import frame_of, values_of
from llmpq.errors import CorruptDataError, InternalError, InvalidInputError
from llmpq.frames import DataType, Frame, FrameOutput, Sampling, encode_frame
from llmpq.rpc import open_channel
from llmpq.schedule.scheduler import Limits, MicroBatch, Scheduler
from llmpq.schedule.sequence import Sequence
from llmpq.v1 import activation_service_pb2 as pb
from llmpq.v1.activation_service_pb2_grpc import ActivationServiceStub


def _prefill(*sequences: Sequence) -> MicroBatch:
    micro_batch = Scheduler(Limits(4, 100, 4, 1, 1), sequences).next_micro_batch()
    assert micro_batch is not None
    return micro_batch


def _sequence(prompt: list[int], max_tokens: int, sampling: Sampling | None = None) -> Sequence:
    return Sequence(1, array("i", prompt), max_tokens, sampling or Sampling(), lambda _: False)


def _result(payload: bytes, data_type: DataType = DataType.INT32) -> Frame:
    frame = frame_of(_prefill(_sequence([5], 1)), "deployment")
    return replace(frame, data_type=data_type, dimensions=(len(payload) // 4,), payload=payload)


def test_a_frame_packs_the_rows_of_its_sequences() -> None:
    """Rows stand one sequence after another; with every sequence greedy there is nothing to say about sampling."""
    frame = frame_of(_prefill(_sequence([5, 6, 7], 1), _sequence([8], 1)), "d")

    assert memoryview(frame.payload).cast("i").tolist() == [5, 6, 7, 8]
    assert (frame.slots, frame.starts, frame.counts, frame.emits) == ([0, 1], [0, 0], [3, 1], [True, True])
    assert (frame.output, frame.sampling, frame.targets) == (FrameOutput.TOKENS, [], [])


def test_one_sampled_sequence_makes_all_say_how_to_draw() -> None:
    """Sampling has one entry a sequence or none, so greedy ones are named beside those that draw."""
    draw = Sampling(temperature=1.0, seed=3)
    frame = frame_of(_prefill(_sequence([5], 1), _sequence([6], 1, draw)), "d")

    assert frame.sampling == [Sampling(), draw]


def test_a_scoring_frame_names_the_tokens_that_follow() -> None:
    """Each row's target is the token after it; the last token of a prompt is a target only, unless it is alone."""
    frame = frame_of(_prefill(_sequence([5, 6, 7], 0), _sequence([8], 0)), "d")

    assert memoryview(frame.payload).cast("i").tolist() == [5, 6, 8]
    assert frame.targets == [6, 7, -1]
    assert frame.output is FrameOutput.SCORES


def test_results_are_tokens_or_scores() -> None:
    """The payload is read by its type, and must hold as many values as the frame asked for."""
    assert values_of(_result(array("i", [7, 9]).tobytes()), 2) == [7, 9]
    assert values_of(_result(array("f", [-0.5]).tobytes(), DataType.FLOAT32), 1) == [-0.5]
    assert values_of(_result(b""), 0) == []
    with pytest.raises(InternalError, match="1 values"):
        values_of(_result(array("i", [7]).tobytes()), 2)


async def test_results_of_an_old_deployment_are_dropped(bench: Bench) -> None:
    """A stage that still computes for a deployment that is gone is acknowledged and otherwise ignored."""
    async with bench.running(), open_channel(bench.address) as channel:
        message = pb.ForwardRequest.FromString(encode_frame(_result(b"")))
        call = ActivationServiceStub(channel).Forward()
        await call.write(message)
        acknowledged = await call.read()
        call.cancel()

    assert acknowledged.frame_id == message.frame_id


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (encode_frame(_result(array("i", [7]).tobytes()))[:-1] + b"\x7f", CorruptDataError),
        (b"\xff\xff", InvalidInputError),
    ],
)
async def test_a_damaged_result_ends_the_stream(bench: Bench, raw: bytes, error: type[Exception]) -> None:
    """A result that does not match its checksum is DATA_LOSS, and what is no frame INVALID_ARGUMENT."""
    async with bench.running():
        with pytest.raises(error):
            await forward_messages(bench.address, [raw])
