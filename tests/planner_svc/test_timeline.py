"""The closed-loop formula against a simulation that knows no formula."""

import random

import pytest

from planner_svc.timeline import closed_loop_s, open_loop_s


def simulate_s(server_s: list[float], num_lanes: int, num_rounds: int) -> float:
    """When first-come-first-served service in a ring ends: a lane's next round starts when its last has ended."""
    free_s = [0.0] * len(server_s)
    ready = [(0.0, lane, 0) for lane in range(num_lanes)]  # (time, lane, round): next to enter the first server
    end_s = 0.0
    while ready:
        ready.sort()
        now_s, lane, number = ready.pop(0)
        for server, service_s in enumerate(server_s):
            now_s = max(now_s, free_s[server]) + service_s
            free_s[server] = now_s
        end_s = max(end_s, now_s)
        if number + 1 < num_rounds:
            ready.append((now_s, lane, number + 1))
    return end_s


@pytest.mark.parametrize("seed", range(30))
def test_closed_loop_equals_simulation(seed: int) -> None:
    """Lanes of equal times take exactly what the closed-loop formula says, whichever branch holds."""
    rng = random.Random(seed)  # noqa: S311 not for secrets
    server_s = [rng.choice([0.5, 1, 2, 3, 7]) for _ in range(rng.randint(1, 5))]
    num_lanes, num_rounds = rng.randint(1, 7), rng.randint(1, 9)
    predicted = closed_loop_s(
        total_s=sum(server_s), slowest_s=max(server_s), num_lanes=num_lanes, num_rounds=num_rounds
    )
    assert predicted == pytest.approx(simulate_s(server_s, num_lanes, num_rounds), rel=1e-12)


def test_open_loop_equals_simulation() -> None:
    """Prefill micro-batches that pass once take exactly what the open-loop formula says."""
    server_s = [1.0, 4.0, 2.0]
    assert open_loop_s(total_s=7.0, slowest_s=4.0, num_micro_batches=5) == simulate_s(server_s, 5, 1)


def test_nothing_to_do_takes_no_time() -> None:
    """No rounds and no micro-batches take no time."""
    assert closed_loop_s(total_s=3.0, slowest_s=2.0, num_lanes=2, num_rounds=0) == 0.0
    assert open_loop_s(total_s=3.0, slowest_s=2.0, num_micro_batches=0) == 0.0
