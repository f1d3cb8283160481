"""What the planner is told, and what is measured for it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from bench import Bench
from mesh import completion

from coordinator.calibration import calibration_samples
from llmpq import BatchState, PlanOptions
from llmpq.calibration_text import MAX_SAMPLE_TOKENS
from llmpq.device import ModelPart
from llmpq.errors import InvalidInputError, NotFoundError, PreconditionError, UnavailableError
from llmpq.model import read_shape
from llmpq.plan import LengthBucket, Rounding

LINES = [completion(f"r{n}", "x" * (4 + n % 2), 3) for n in range(4)]
WORKLOAD = (LengthBucket(prompt_tokens=8, output_tokens=4, count=2),)


async def test_the_planner_is_told_shape_devices_and_lengths(bench: Bench) -> None:
    """The problem has the model's shape, every member's profile, the histogram of lengths, and the options."""
    options = PlanOptions(quality_budget=0.5)
    async with bench.running():
        for name in ("a", "b"):
            await bench.add_stage(name)
        await bench.run([*LINES, completion("score", "x" * 9, 0, echo=True, logprobs=0)], plan_options=options)

    (problem,) = bench.planner.problems
    assert problem.shape == read_shape(bench.model)
    assert [device.device_id for device in problem.devices] == ["a", "b"]
    assert {point.scheme for point in problem.devices[0].points} == {"w16", "w4", ""}
    assert problem.workload == (LengthBucket(4, 3, 2), LengthBucket(5, 3, 2), LengthBucket(8, 1, 1))
    assert problem.options == options


@pytest.fixture
def stored_model(bench: Bench, tmp_path: Path) -> str:
    """The bench's model as if it were quantized: to w4 in groups of 32, but for its last layer."""
    model = tmp_path / "stored"
    shutil.copytree(bench.model, model)
    config = json.loads((model / "config.json").read_text())
    last = config["num_hidden_layers"] - 1
    weights = {"num_bits": 4, "strategy": "group", "group_size": 32}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", f"re:.*layers\\.{last}\\."],
    }
    (model / "config.json").write_text(json.dumps(config))
    return str(model)


async def test_a_quantized_model_is_planned_at_what_it_is_stored_at(bench: Bench, stored_model: str) -> None:
    """Each layer's scheme and the group size go to the planner; there is nothing to rate, nor a loss to limit."""
    bench.model = stored_model
    num_layers = read_shape(stored_model).num_layers
    async with bench.running():
        stage = await bench.add_stage("a", schemes=("w16", "w8", "w4"))
        await bench.run(LINES, plan_options=PlanOptions(quality_budget=0.1))
        await bench.client.preview_plan(stored_model, WORKLOAD, plan_options=PlanOptions(allowed_schemes=("w16", "w4")))

    for problem in bench.planner.problems:
        assert problem.options.layer_schemes == ("w4",) * (num_layers - 1) + ("w16",)
        assert (problem.options.group_size, problem.options.quality_budget) == (32, None)
        assert {point.scheme for point in problem.devices[0].points} == {"w16", "w4", ""}
    assert (len(bench.planner.problems), stage.ratings) == (2, [])


@pytest.mark.parametrize(
    ("options", "asked_for"),
    [
        (PlanOptions(allowed_schemes=("w8",)), "w8"),
        (PlanOptions(allowed_schemes=("w4",)), "w4"),
        (PlanOptions(group_size=64), "groups of 64"),
        (PlanOptions(rounding=Rounding("gptq")), "rounding by 'gptq'"),
        (PlanOptions(layer_schemes=("w4",)), "other schemes of some layers"),
    ],
    ids=str,
)
async def test_another_precision_than_the_stored_one_is_refused(
    bench: Bench, stored_model: str, options: PlanOptions, asked_for: str
) -> None:
    """What a quantized model is not stored at cannot be had; the error names that, and what is stored."""
    async with bench.running():
        await bench.add_stage("a")
        with pytest.raises(
            InvalidInputError, match=f"w4 in groups of 32 and w16.*; {asked_for} cannot be had"
        ) as refused:
            await bench.client.preview_plan(stored_model, WORKLOAD, plan_options=options)

    assert refused.value.reason == "STORED_PRECISION"


@pytest.mark.parametrize("options", [PlanOptions(layer_schemes=("w4",)), PlanOptions(layers_per_group=97)], ids=str)
async def test_layers_are_counted_before_anything_is_measured(bench: Bench, options: PlanOptions) -> None:
    """Schemes for some layers only, and groups that the layers cannot be cut into, are refused; nobody profiles."""
    async with bench.running():
        stage = await bench.add_stage("a")
        with pytest.raises(InvalidInputError, match="layers"):
            await bench.client.preview_plan(bench.model, WORKLOAD, plan_options=options)
    assert stage.num_profiled == 0


async def test_each_thing_is_measured_once(bench: Bench) -> None:
    """Profiles are shared by devices alike, and profiles and sensitivities outlive the coordinator."""
    async with bench.running():
        stage = await bench.add_stage("a")
        await bench.run(LINES)
        await bench.run(LINES)
        assert (stage.num_profiled, len(stage.ratings)) == (1, 1)
    async with bench.running():
        twin = await bench.add_stage("b")
        await bench.run(LINES)
        assert (twin.num_profiled, len(twin.ratings)) == (0, 0)
        await bench.run(LINES, plan_options=PlanOptions(group_size=32))
        assert (twin.num_profiled, len(twin.ratings)) == (1, 1)
    first, third = (
        [point for point in bench.planner.problems[number].devices[0].points if point.part is not ModelPart.LAYER]
        for number in (0, 2)
    )  # those of layers are corrected by the runs between
    assert first == third


async def test_only_allowed_schemes_are_measured(bench: Bench) -> None:
    """With one scheme there is nothing to rate; a device that can run no allowed scheme is left out."""
    async with bench.running():
        await bench.add_stage("a")
        await bench.add_stage("b", schemes=("w4",))
        await bench.run(LINES, plan_options=PlanOptions(allowed_schemes=("w16",)))

    (problem,) = bench.planner.problems
    assert [device.device_id for device in problem.devices] == ["a"]
    assert {point.scheme for point in problem.devices[0].points} == {"w16", ""}
    assert problem.sensitivities == ()


async def test_a_preview_says_what_each_strategy_comes_to(bench: Bench) -> None:
    """One result a strategy, a plan or the reason why there is none, with messages on the way."""
    said: list[str] = []
    async with bench.running():
        stage = await bench.add_stage("a")
        previews = await bench.client.preview_plan(
            bench.model, WORKLOAD, strategies=("llm-pq", "uniform"), on_status=said.append
        )
        (default,) = await bench.client.preview_plan(bench.model, WORKLOAD)

    assert [(preview.strategy, bool(preview.plan)) for preview in previews] == [("llm-pq", True), ("uniform", False)]
    assert previews[1].error == "No plan fits the devices."
    assert default.strategy == "llm-pq"
    assert previews[0].plan.max_sequence_tokens == 12
    assert any("Measuring device a" in message for message in said)
    assert stage.loads == []


async def test_a_device_that_cannot_be_reached_is_left_out(bench: Bench) -> None:
    """One device of which nothing can be measured does not keep the batch from running on the others."""
    said: list[str] = []
    async with bench.running():
        await bench.add_stage("a")
        lost = await bench.add_stage("b", memory_budget_bytes=2 * 10**9, schemes=("w16", "w4", "w3"))
        lost.profile_error = UnavailableError("Nobody is there.")
        batch, _ = await bench.run(LINES)
        await bench.client.preview_plan(bench.model, WORKLOAD, on_status=said.append)

    assert batch.state is BatchState.COMPLETED
    assert [device.device_id for device in bench.planner.problems[0].devices] == ["a"]
    assert {rating.scheme for rating in bench.planner.problems[0].sensitivities} == {"w16", "w4"}
    assert "Planning without device b: Nobody is there." in said


async def test_without_any_device_in_reach_there_is_no_plan(bench: Bench) -> None:
    """If nothing can be measured anywhere, the error is what the device's was."""
    async with bench.running():
        (await bench.add_stage("a")).profile_error = UnavailableError("Nobody is there.")
        with pytest.raises(UnavailableError, match="Nobody is there"):
            await bench.client.preview_plan(bench.model, WORKLOAD)


async def test_a_problem_is_what_the_planner_is_asked(bench: Bench) -> None:
    """Whoever asks for the problem gets what the planner gets, and nothing is planned."""
    said: list[str] = []
    async with bench.running():
        stage = await bench.add_stage("a")
        options = PlanOptions(quality_budget=0.5)
        problem = await bench.client.planning_problem(
            bench.model, WORKLOAD, plan_options=options, on_status=said.append
        )
        assert bench.planner.problems == []
        await bench.client.preview_plan(bench.model, WORKLOAD, plan_options=options)
        with pytest.raises(InvalidInputError, match="no strategy"):
            await bench.client.planning_problem(bench.model, WORKLOAD, plan_options=PlanOptions(strategy="magic"))

    (asked,) = bench.planner.problems
    assert replace(asked, options=options) == problem
    assert said
    assert stage.num_profiled == 1


async def test_a_preview_needs_devices_and_a_model(bench: Bench) -> None:
    """Without devices, without a device for the allowed schemes, or without the model it says so."""
    async with bench.running():
        with pytest.raises(PreconditionError, match="no devices"):
            await bench.client.preview_plan(bench.model, WORKLOAD)
        await bench.add_stage("a")
        with pytest.raises(PreconditionError, match="w3"):
            await bench.client.preview_plan(bench.model, WORKLOAD, plan_options=PlanOptions(allowed_schemes=("w3",)))
        with pytest.raises(NotFoundError, match="no/such"):
            await bench.client.preview_plan("no/such", WORKLOAD)


def test_calibration_text_ships_with_the_package(opt_bytes: str) -> None:
    """There are 96 samples of the same number of tokens, and the file says where they come from."""
    samples = calibration_samples(opt_bytes)
    header = (Path(__file__).parents[2] / "llmpq" / "calibration.jsonl").read_text().splitlines()[0]

    assert [len(sample) for sample in samples] == [MAX_SAMPLE_TOKENS] * 96
    assert "ODC-BY" in header
