"""Who rates layers, by what, and what is kept of it."""

from pathlib import Path

import pytest
from bench import Bench
from mesh import completion

from coordinator.calibration import calibration_samples
from llmpq import PlanOptions
from llmpq.calibration_text import NUM_RATING_SAMPLES
from llmpq.errors import InvalidInputError, NotFoundError, PreconditionError
from llmpq.plan import Rounding

LINES = [completion("r", "x" * 4, 3)]


async def test_sensitivities_are_normalized(bench: Bench) -> None:
    """The device with the largest budget rates the layers, and w4 on every layer sums to 1."""
    async with bench.running():
        small = await bench.add_stage("a", memory_budget_bytes=10**8)
        large = await bench.add_stage("b")
        await bench.run(LINES)

    assert (len(small.ratings), len(large.ratings)) == (0, 1)
    samples = [list(sample.token_ids) for sample in large.ratings[0].samples]
    assert samples == calibration_samples(bench.model)[:NUM_RATING_SAMPLES]
    ratings = bench.planner.problems[0].sensitivities
    assert sum(rating.omega for rating in ratings if rating.scheme == "w4") == pytest.approx(1)
    assert {rating.scheme for rating in ratings} == {"w16", "w4"}


async def test_of_equal_budgets_the_newest_instruction_set_rates(bench: Bench) -> None:
    """Rating takes as long as the device that does it."""
    async with bench.running():
        stages = [await bench.add_stage(cpu_class, cpu_class=cpu_class) for cpu_class in ("sse4", "avx512", "avx2")]
        await bench.run(LINES)

    assert [len(stage.ratings) for stage in stages] == [0, 1, 0]


async def test_the_unit_is_rated_even_if_it_may_not_be_used(bench: Bench) -> None:
    """Without w4 among the allowed schemes the unit is still w4, and its own ratings are left out."""
    async with bench.running():
        await bench.add_stage("a", schemes=("w16", "w8", "w4"))
        await bench.run(LINES, plan_options=PlanOptions(allowed_schemes=("w16", "w8")))

    ratings = bench.planner.problems[0].sensitivities
    assert {rating.scheme for rating in ratings} == {"w16", "w8"}
    assert sum(rating.omega for rating in ratings if rating.scheme == "w8") == pytest.approx(1)


async def test_raters_are_told_indicator_rounding_and_group(bench: Bench) -> None:
    """What the options say of ratings reaches the stage."""
    rounding = Rounding("hqq", is_symmetric=True)
    async with bench.running():
        stage = await bench.add_stage("a")
        for indicator in ("variance", "hessian", "loss"):
            options = PlanOptions(indicator=indicator, rounding=rounding, group_size=128)
            await bench.client.rate_layers(bench.model, plan_options=options)

    assert [request.indicator for request in stage.ratings] == ["variance", "hessian", "loss"]
    assert {request.rounding.method for request in stage.ratings} == {"hqq"}
    assert all(request.rounding.is_symmetric and request.group_size == 128 for request in stage.ratings)


async def test_each_scheme_is_rated_once(bench: Bench) -> None:
    """Schemes are kept one by one; another indicator, rounding or group is another measurement, a new mesh is not."""
    async with bench.running():
        stage = await bench.add_stage("a", schemes=("w16", "w8", "w4"))
        first = await bench.client.rate_layers(bench.model, plan_options=PlanOptions(allowed_schemes=("w8",)))
        await bench.client.rate_layers(bench.model)
        assert [list(request.schemes) for request in stage.ratings] == [["w4", "w8"], ["w16"]]
        for options in (
            PlanOptions(indicator="variance"),
            PlanOptions(rounding=Rounding("hqq")),
            PlanOptions(rounding=Rounding(is_symmetric=True)),
            PlanOptions(rounding=Rounding(is_unrotated=True)),
            PlanOptions(group_size=128),
        ):
            num_rated = len(stage.ratings)
            await bench.client.rate_layers(bench.model, plan_options=options)
            await bench.client.rate_layers(bench.model, plan_options=options)
            assert len(stage.ratings) == num_rated + 1
    bench.state = bench.state.with_name("state of another mesh")
    async with bench.running():
        twin = await bench.add_stage("b", schemes=("w16", "w8", "w4"))
        again = await bench.client.rate_layers(bench.model, plan_options=PlanOptions(allowed_schemes=("w8",)))
        assert twin.ratings == []
    assert again == first


async def test_a_cache_that_cannot_be_written_stops_no_rating(bench: Bench, tmp_path: Path) -> None:
    """Then layers are rated each time."""
    (tmp_path / "cache").write_text("a file where the directory would be")
    async with bench.running():
        stage = await bench.add_stage("a")
        ratings = [await bench.client.rate_layers(bench.model) for _ in range(2)]
    assert ratings[0] == ratings[1]
    assert len(stage.ratings) == 2


async def test_ratings_cover_what_the_devices_can_run(bench: Bench) -> None:
    """Without allowed schemes every scheme of some device is rated, by one that can run it; messages tell of it."""
    said: list[str] = []
    async with bench.running():
        await bench.add_stage("a", schemes=("w16", "w4"))
        other = await bench.add_stage("b", schemes=("w3",), memory_budget_bytes=10**8)
        ratings = await bench.client.rate_layers(bench.model, on_status=said.append)

    assert {(rating.layer, rating.scheme) for rating in ratings} == {
        (layer, scheme) for layer in (0, 1) for scheme in ("w16", "w4", "w3")
    }
    assert [list(request.schemes) for request in other.ratings] == [["w3"]]
    assert any("2 of 2 steps" in message for message in said)


async def test_random_ratings_need_no_device(bench: Bench) -> None:
    """They are drawn by the coordinator, the same each time, for as many layers as the model has."""
    options = PlanOptions(indicator="random", allowed_schemes=("w8", "w4"))
    async with bench.running():
        ratings = await bench.client.rate_layers(bench.model, plan_options=options)
        again = await bench.client.rate_layers(bench.model, plan_options=options)

    assert ratings == again
    assert [rating.layer for rating in ratings if rating.scheme == "w4"] == list(range(8))
    assert sum(rating.omega for rating in ratings if rating.scheme == "w4") == pytest.approx(1)


async def test_what_cannot_be_rated_is_refused(bench: Bench) -> None:
    """Without devices, without one for a scheme, without the model, or by an unknown indicator it says so."""
    async with bench.running():
        with pytest.raises(PreconditionError, match="no devices"):
            await bench.client.rate_layers(bench.model)
        await bench.add_stage("a", schemes=("w16", "w8"))
        with pytest.raises(PreconditionError, match="No device can run w4"):
            await bench.client.rate_layers(bench.model)
        with pytest.raises(PreconditionError, match="No device can run w3"):
            await bench.client.rate_layers(bench.model, plan_options=PlanOptions(allowed_schemes=("w3",)))
        with pytest.raises(InvalidInputError, match="guess"):
            await bench.client.rate_layers(bench.model, plan_options=PlanOptions(indicator="guess"))
        with pytest.raises(NotFoundError, match="such"):
            await bench.client.rate_layers("/no/such")
