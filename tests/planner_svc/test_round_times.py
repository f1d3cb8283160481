"""The closed loop against decode rounds that LLM-PQ's authors measured in 2023."""

import csv
from pathlib import Path
from statistics import median

import pytest

from planner_svc.timeline import closed_loop_s

MEASURED = Path(__file__).parents[3] / "shared/data/llm-pq/round_time_check.csv"


@pytest.fixture(scope="module")
def rounds() -> list[dict[str, str]]:
    """The measured rounds, with the slowest stage that the authors' planner predicted."""
    if not MEASURED.exists():
        pytest.skip(f"the measurements are not beside this checkout: {MEASURED}")
    with MEASURED.open() as file:
        return list(csv.DictReader(file))


def predicted_round_s(row: dict[str, str]) -> float:
    """What one more round adds to the time of the closed loop, stages being as slow as the slowest."""
    lanes, slowest_s = int(row["mu_dec"]), float(row["pipeedge_obj_max_decode_stage_ms"]) / 1e3
    pipeline = {"total_s": lanes * slowest_s, "slowest_s": slowest_s, "num_lanes": lanes}
    return closed_loop_s(**pipeline, num_rounds=80) - closed_loop_s(**pipeline, num_rounds=79)


def test_a_round_is_lanes_times_the_slowest_stage(rounds: list[dict[str, str]]) -> None:
    """The formula gives for each measured plan the predicted round, to the four digits it is noted with."""
    assert rounds
    for row in rounds:
        assert predicted_round_s(row) == pytest.approx(float(row["predicted_round_s_mu_x_max"]), abs=1e-4)


def test_rounds_take_as_long_as_measured(rounds: list[dict[str, str]]) -> None:
    """From the authors' own stage times, the median round is within 5 % of what was measured, and none off by 1.5."""
    ratios = [predicted_round_s(row) / float(row["measured_round_s"]) for row in rounds]
    assert median(ratios) == pytest.approx(1, abs=0.05)
    assert min(ratios) > 1 / 1.5
    assert max(ratios) < 1.5
