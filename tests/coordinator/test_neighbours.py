"""Which devices compute while another one of their host is measured."""

import asyncio

from bench import Bench

from coordinator.cluster import Member
from coordinator.neighbours import at_once, neighbours_of
from llmpq.device import DeviceDescription
from llmpq.errors import PreconditionError

DEVICE = DeviceDescription("cpu", "", "avx2", 1, 0, 0, ("w16",), 4)


def member(name: str, *cores: int, host: str = "one") -> Member:
    """A stage server on some cores of a host."""
    return Member(name, f"{host}:1", DEVICE, frozenset(cores))


def test_neighbours_are_on_other_cores_of_the_same_host() -> None:
    """Those on the same cores or on another host are none, nor is one that is not held to cores."""
    first, second, third = member("first", 0), member("second", 1), member("third", 1, 2)
    members = (first, second, third, member("far", 1, host="two"), member("everywhere"))
    assert neighbours_of(first, members) == (second,)
    assert neighbours_of(third, members) == (first,)
    assert neighbours_of(members[-1], members) == ()


def test_devices_that_share_cores_do_not_compute_at_once() -> None:
    """The first on each core does, whatever its host's other cores and other hosts do."""
    members = (member("a", 0), member("b", 0, 1), member("c", 1), member("d", 0, host="two"))
    assert [found.device_id for found in at_once(members)] == ["a", "c", "d"]


async def test_a_device_is_measured_while_its_neighbours_are_busy(bench: Bench) -> None:
    """Each in turn; afterwards nobody is."""
    measured: dict[str, bool] = {}

    def is_busy(name: str) -> bool:
        return bench.stages[name].is_busy

    async with bench.running():
        for core, (name, other) in enumerate((("a", "b"), ("b", "a"))):
            stage = await bench.add_stage(name, cores=(core,), cpu_class=f"class {core}")
            stage.on_profile = lambda name=name, other=other: measured.update({name: is_busy(other)})
        await bench.client.profile_devices(bench.model)
        async with asyncio.timeout(5):
            while is_busy("a") or is_busy("b"):  # noqa: ASYNC110 a call that was cancelled ends at its own time
                await asyncio.sleep(0.01)
    assert measured == {"a": True, "b": True}


async def test_a_neighbour_that_cannot_be_kept_busy_is_left_alone(bench: Bench) -> None:
    """As one that computes already."""
    async with bench.running():
        for core, name in enumerate(("a", "b")):
            stage = await bench.add_stage(name, cores=(core,))
            stage.busy_error = PreconditionError("It computes.", reason="STAGE_BUSY", subject=name)
        profiles = await bench.client.profile_devices(bench.model)
    assert all(profile.points for profile in profiles)


async def test_two_who_measure_at_once_take_turns(bench: Bench) -> None:
    """Each keeps the other's device busy: without turns both would wait for ever."""
    async with bench.running():
        for core, name in enumerate(("a", "b", "c")):
            await bench.add_stage(name, cores=(core,), cpu_class=f"class {core}")
        async with asyncio.timeout(20):
            await asyncio.gather(*(bench.client.profile_devices(bench.model, is_fresh=True) for _ in range(3)))
    assert [stage.num_profiled for stage in bench.stages.values()] == [3, 3, 3]
