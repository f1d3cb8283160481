"""`llmpq profile` and `llmpq fidelity` against a coordinator behind real gRPC."""

import json
from pathlib import Path

import pytest
from fake_coordinator import FakeCoordinator
from terminal import Terminal

from llmpq.plan import PlanOptions

STORIES = str(Path(__file__).parents[1] / "data" / "stories260K")


def test_profile_shows_layer_times_and_links(
    terminal: Terminal, address: str, background_coordinator: FakeCoordinator
) -> None:
    """The table has the times nearest to the sizes shown; --json has every point; --fresh is passed on."""
    arguments = ("profile", "--model", "m", "--coordinator", address)
    outcome = terminal.run(*arguments)
    assert outcome.status == 0
    assert "2.50 (96 rows)" in outcome.out
    assert "2.50 (6 rows)" in outcome.out
    assert "0.25 + 0.50" in outcome.out
    assert "Measuring device a: 1 of 2 points." in outcome.err
    (profile,) = json.loads(terminal.run(*arguments, "--fresh", "--json").out)["profiles"]
    assert (profile["device_id"], len(profile["points"])) == ("a", 2)
    assert [request.is_fresh for request in background_coordinator.profile_requests] == [False, True]


def test_fidelity_reports_errors_of_slices_and_memory(terminal: Terminal, address: str, tmp_path: Path) -> None:
    """Errors are means of |predicted / measured - 1|, with the worst and the bias; a table shows each workload."""
    output = tmp_path / "f.json"
    arguments = ("fidelity", "--model", STORIES, "--coordinator", address, "--workloads", 3, "--runs", 0)
    outcome = terminal.run(*arguments, "--output", output)
    assert outcome.status == 0
    assert "11.00 -> 10.00 +10%" in outcome.out
    assert "layers: mean absolute error 15.0% (worst 20.0%, bias -5.0%) of 6" in outcome.out
    summary = json.loads(output.read_text())["summary"]
    assert summary["prefill"] == pytest.approx({"count": 3, "mean": 0.1, "worst": 0.1, "bias": 0.1})
    assert summary["decode"]["bias"] == pytest.approx(-0.2)
    assert summary["memory"]["mean"] == pytest.approx(0.03)
    assert summary["runs"] == {}


def test_fidelity_runs_batches_under_random_plans(
    terminal: Terminal, address: str, background_coordinator: FakeCoordinator
) -> None:
    """A run fixes precisions, eta and lanes, generates to the end, and is compared with the plan's estimate."""
    arguments = ("fidelity", "--model", STORIES, "--coordinator", address, "--workloads", 0, "--runs", 2, "--json")
    document = json.loads(terminal.run(*arguments).out)
    assert [run["measured_s"] for run in document["runs"]] == [2.0, 2.0]
    assert document["summary"]["runs"]["count"] == 2
    assert len(background_coordinator.submissions) == 2
    for submission in background_coordinator.submissions:
        options = submission.plan_options
        assert submission.ignore_stop
        assert len(options.layer_schemes) == 5  # the layers of stories260K
        assert options.prefill_micro_batch in {1, 2, 4}
        assert options.num_lanes in {1, 2, 3}
        assert options.strategy == PlanOptions().strategy
