"""What the planner is told of devices and links, and how its predictions are checked."""

import asyncio
import random

import pytest
from bench import Bench
from fake_planner import LAYER_BYTES
from fake_stage import COMPUTE_NS, LINK_LATENCY_NS, PROCESS_BYTES, RUNTIME_BYTES
from mesh import completion

from coordinator.fidelity_workloads import SliceWorkload, draw_workload
from llmpq import PlanOptions
from llmpq.device import ModelPart, Phase
from llmpq.errors import InvalidInputError, UnavailableError
from llmpq.model import read_shape
from llmpq.rpc.link_probe import fit_link
from llmpq.trace import transits_ns

LINES = [completion(f"r{n}", "xxxx", 4) for n in range(6)]


async def test_the_planner_is_told_the_link_from_every_sender(bench: Bench) -> None:
    """Each device has a link from each other one and from the coordinator, whose latency has the way back in it."""
    async with bench.running():
        for name in ("a", "b"):
            await bench.add_stage(name)
        profiles = await bench.client.profile_devices(bench.model)
        await bench.client.profile_devices(bench.model)

    assert [[link.sender_id for link in profile.links] for profile in profiles] == [["b", ""], ["a", ""]]
    for profile in profiles:
        from_stage, from_coordinator = profile.links
        assert from_stage.latency_ns == LINK_LATENCY_NS
        assert from_coordinator.latency_ns > LINK_LATENCY_NS
        assert profile.link_latency_ns == (from_stage.latency_ns + from_coordinator.latency_ns) // 2
    assert [bench.stages[name].num_links for name in ("a", "b")] == [2, 2]  # not again for the second call


async def test_a_run_corrects_the_link_from_the_coordinator(bench: Bench) -> None:
    """Half of what frames were on their way beyond what was known is added to the way from and to the coordinator."""
    async with bench.running():
        for name in ("a", "b"):
            await bench.add_stage(name)
        before = {profile.device_id: profile for profile in await bench.client.profile_devices(bench.model)}
        batch, _ = await bench.run(LINES, ignore_stop=True)
        frames = await bench.client.trace(batch.batch_id)
        after = {profile.device_id: profile for profile in await bench.client.profile_devices(bench.model)}

    assert batch.plan is not None
    first, second = (stage.device_id for stage in batch.plan.stages)
    decodes = sorted(
        (frame for frame in frames if frame.phase is Phase.DECODE), key=lambda frame: sum(transits_ns(frame))
    )
    typical = decodes[len(decodes) // 2]
    shape, activation_bytes = read_shape(bench.model), before[first].description.activation_bytes
    payload = typical.num_rows * shape.hidden_size * activation_bytes
    known_s = before[first].link_from("").transfer_s(0) + before[second].link_from(first).transfer_s(payload)
    excess_ns = sum(transits_ns(typical)) - known_s * 1e9
    corrected_ns = max(before[first].link_from("").latency_ns + excess_ns / 2, 0)
    assert after[first].link_from("").latency_ns == pytest.approx(corrected_ns, abs=1)
    assert after[first].link_from(second) == before[first].link_from(second)
    assert after[second].links == before[second].links


async def test_links_within_a_host_are_kept_until_fresh_ones_are_asked_for(bench: Bench) -> None:
    """Processes that start later have the links of those before on the same cores, and not those of others."""
    num_measured = []
    for core in (1, 1, 2):
        async with bench.running():
            stage = await bench.add_stage("a", cores=(core,))
            (profile,) = await bench.client.profile_devices(bench.model)
            assert [link.sender_id for link in profile.links] == [""]
            num_measured.append(stage.num_links)
            await bench.client.profile_devices(bench.model, is_fresh=True)
            assert stage.num_links == num_measured[-1] + 1
    assert num_measured == [1, 0, 1]


async def test_a_link_that_cannot_be_measured_is_left_out(bench: Bench) -> None:
    """A plan is made all the same: without links that a stage cannot measure."""
    async with bench.running():
        stage = await bench.add_stage("a")
        stage.link_error = UnavailableError("Nobody is there.")
        (profile,) = await bench.client.profile_devices(bench.model)
    assert profile.links == ()
    assert profile.points


async def test_profiles_are_kept_by_scheme_until_fresh_ones_are_asked_for(bench: Bench) -> None:
    """Only schemes that were not measured before are measured; a fresh profile measures again."""
    async with bench.running():
        stage = await bench.add_stage("a", schemes=("w16", "w4"))
        await bench.client.profile_devices(bench.model, plan_options=PlanOptions(allowed_schemes=("w4",)))
        (profile,) = await bench.client.profile_devices(bench.model)
        await bench.client.profile_devices(bench.model)
        assert stage.num_profiled == 2
        await bench.client.profile_devices(bench.model, is_fresh=True)
        assert stage.num_profiled == 3
    assert {point.scheme for point in profile.points} == {"w16", "w4", ""}


async def test_a_plan_knows_of_schemes_that_it_may_not_use(bench: Bench) -> None:
    """What long contexts cost is measured at one scheme; in plans of others it would be guessed without its points."""
    async with bench.running():
        await bench.add_stage("a", schemes=("w16", "w4"))
        await bench.client.profile_devices(bench.model)
        await bench.run(LINES, plan_options=PlanOptions(allowed_schemes=("w4",)))
    (problem,) = bench.planner.problems
    assert {point.scheme for point in problem.devices[0].points} == {"w16", "w4", ""}


async def test_a_plan_after_a_run_is_made_of_corrected_profiles(bench: Bench) -> None:
    """Decode took 2/3 of the 3 ms predicted: all but layers in prefill is planned to take less, by the root of it."""
    async with bench.running():
        await bench.add_stage("a")
        options = PlanOptions(prefill_micro_batch=6, decode_micro_batch=6, num_lanes=1)
        await bench.run(LINES, plan_options=options)
        await bench.run(LINES, plan_options=options)

    before, after = (problem.devices[0].points for problem in bench.planner.problems)
    measured_over_predicted = COMPUTE_NS / 1e6 / 3
    for first, second in zip(before, after, strict=True):
        is_prefill = first.part is ModelPart.LAYER and first.phase is Phase.PREFILL
        expected = first.duration_ns * (1 if is_prefill else measured_over_predicted**0.5)
        assert second.duration_ns == pytest.approx(expected, abs=1)


async def test_fidelity_compares_what_the_stage_took_with_what_the_planner_said(bench: Bench) -> None:
    """Each workload is a slice that was loaded, times are the stage's own, and memory that of its process."""
    async with bench.running():
        stage = await bench.add_stage("a")
        results = [result async for result in bench.client.measure_fidelity(bench.model, 4, seed=3)]

    assert len(results) == 4
    for result, load in zip(results, stage.loads, strict=True):
        assert (result.first_layer, result.schemes) == (load.first_layer, tuple(layer.scheme for layer in load.layers))
        assert (result.predicted_prefill_ms, result.predicted_decode_ms) == (4.0, 1.0)
        assert result.measured_prefill_ms == result.measured_decode_ms == COMPUTE_NS / 1e6
        assert result.predicted_bytes == RUNTIME_BYTES + LAYER_BYTES
        assert result.measured_bytes == PROCESS_BYTES
    assert len(bench.planner.evaluated) == 4


async def test_fidelity_needs_a_number_of_workloads(bench: Bench) -> None:
    """None, or a million, are refused."""
    async with bench.running():
        await bench.add_stage("a")
        for number in (0, 10**6):
            with pytest.raises(InvalidInputError, match="num_workloads"):
                await anext(bench.client.measure_fidelity(bench.model, number))


async def test_drawn_workloads_are_slices_that_a_stage_can_hold(bench: Bench) -> None:
    """Layers are the model's, prompts fit the context; the same seed draws the same."""
    shape = await asyncio.to_thread(read_shape, bench.model)

    def draw(seed: int) -> SliceWorkload:
        return draw_workload(random.Random(seed), shape, ("w16", "w4"), 40)  # noqa: S311 not for secrets

    drawn = [draw(seed) for seed in range(200)]
    for workload in drawn:
        assert 0 <= workload.first_layer < workload.end_layer <= shape.num_layers
        assert 1 <= workload.prompt_tokens <= 40
        assert 1 <= workload.prefill_sequences <= workload.decode_sequences
    assert {workload.first_layer for workload in drawn} > {0}
    assert draw(7) == drawn[7]


def test_a_link_is_found_again_from_its_round_trips() -> None:
    """Round trips of 2 * 0.2 ms and 1 GB/s give that latency and bandwidth."""
    sizes = (4, 2**14, 2**20)
    link = fit_link("a", sizes, [4e-4 + (size - 4) / 1e9 for size in sizes])
    assert link.latency_ns == 200_000
    assert link.bytes_per_s == pytest.approx(1e9, rel=1e-4)
