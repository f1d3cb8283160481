"""The command line against a coordinator behind real gRPC."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from fake_coordinator import PLAN, FakeCoordinator
from terminal import Terminal

from llmpq.batch import Batch, BatchState, Cluster, ClusterStage
from llmpq.cli import progress
from llmpq.cli.app import app
from llmpq.cli.tables import batch_table, cluster_table, plan_table
from llmpq.cli.terminal import stdout
from llmpq.device import DeviceDescription
from llmpq.plan import STRATEGIES
from llmpq.v1 import coordinator_service_pb2 as pb

STORIES = Path(__file__).parents[1] / "data" / "stories260K"
BATCH_KEYS = {
    "batch_id",
    "state",
    "status_message",
    "model",
    "requests_total",
    "requests_completed",
    "requests_failed",
    "prompt_tokens",
    "generated_tokens",
    "wall_s",
    "tokens_per_s",
    "plan_hash",
    "stages",
}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """An input file of three requests."""
    path = tmp_path / "in.jsonl"
    lines = [
        {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi"}}
        for number in range(1, 4)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_run_batch_writes_answers_and_prints_one_document(
    terminal: Terminal, address: str, prompts: Path, tmp_path: Path
) -> None:
    """With --json standard output is the document and nothing else; the keys are stable."""
    output = tmp_path / "out.jsonl"
    outcome = terminal.run("run-batch", "-i", prompts, "-o", output, "--coordinator", address, "--json")
    document = json.loads(outcome.out)
    assert outcome.status == 0
    assert set(document) == BATCH_KEYS | {"output", "errors"}
    assert (document["requests_total"], document["requests_completed"], document["requests_failed"]) == (3, 3, 0)
    assert (document["wall_s"], document["generated_tokens"], document["tokens_per_s"]) == (2.0, 21, 10.5)
    assert document["plan_hash"] == PLAN.hash
    assert (
        document["stages"][0]
        | {
            "device_id": "fast",
            "first_layer": 0,
            "layers": 3,
            "precisions": {"w8": 2, "w4": 1},
            "predicted_prefill_ms": 12.5,
            "predicted_decode_ms": 3.5,
        }
        == document["stages"][0]
    )
    assert document["stages"][0]["memory"]["used_bytes"] == 1550
    assert [json.loads(line)["custom_id"] for line in output.read_text().splitlines()] == ["r1", "r2", "r3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_progress_is_plain_lines_where_there_is_no_terminal(
    terminal: Terminal, address: str, prompts: Path, tmp_path: Path
) -> None:
    """Every state is told once on standard error, without escape sequences; the summary is on standard output."""
    outcome = terminal.run("run-batch", "-i", prompts, "-o", tmp_path / "o.jsonl", "--coordinator", address)
    for line in ("Submitted batch batch-1: 3 requests.", "loading: 4 of 4 layers", "running: 3 of 3 requests"):
        assert line in outcome.err
    assert "3 of 3 requests answered" in outcome.out
    assert "21 tokens in 2.0 s, 10.5 tokens/s" in outcome.out
    assert "\x1b" not in outcome.out + outcome.err


def test_counting_does_not_flood_the_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each topic is told of at once, its count every five seconds, though two devices are measured by turns."""
    clock = iter(range(142))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock) / 10))
    lines = progress.StatusLines()
    for count in range(71):
        for device in ("fast", "slow"):
            lines.say(f"Measuring device {device}: {count} of 71 points." if count else f"Measuring device {device}.")
    assert capsys.readouterr().err.splitlines() == [
        "Measuring device fast.",
        "Measuring device slow.",
        "Measuring device slow: 25 of 71 points.",
        "Measuring device slow: 50 of 71 points.",
    ]


def test_lines_that_fail_go_to_an_error_file_and_do_not_fail_the_batch(
    terminal: Terminal, address: str, prompts: Path, tmp_path: Path
) -> None:
    """The error file exists only if there are errors, and one of an earlier run does not stay."""
    output, errors = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"
    good = prompts.read_text()
    prompts.write_text(good + "not json\n")
    outcome = terminal.run("run-batch", "-i", prompts, "-o", output, "--coordinator", address, "--json")
    assert outcome.status == 0
    assert json.loads(outcome.out)["errors"] == str(errors)
    assert json.loads(errors.read_text())["error"]["message"] == "line 4: bad"
    assert len(output.read_text().splitlines()) == 3
    prompts.write_text(good)
    terminal.run("run-batch", "-i", prompts, "-o", output, "--coordinator", address)
    assert not errors.exists()


def test_a_batch_of_which_every_line_failed_exits_with_1(
    terminal: Terminal, address: str, prompts: Path, tmp_path: Path
) -> None:
    """A script that asks for the status learns that there are no answers; the error file and the document are there."""
    prompts.write_text("not json\nnor this\n")
    outcome = terminal.run("run-batch", "-i", prompts, "-o", tmp_path / "o.jsonl", "--coordinator", address, "--json")
    assert outcome.status == 1
    assert json.loads(outcome.out)["state"] == "completed"
    assert "2 request(s) failed; see" in outcome.err


def test_a_batch_that_could_not_be_run_exits_with_1(
    terminal: Terminal, background_coordinator: FakeCoordinator, prompts: Path, tmp_path: Path
) -> None:
    """The document is printed all the same, and standard error says why."""
    background_coordinator.final_state = pb.BATCH_STATE_FAILED
    arguments = ("run-batch", "-i", prompts, "-o", tmp_path / "o", "--coordinator", background_coordinator.address)
    outcome = terminal.run(*arguments, "--json")
    assert outcome.status == 1
    assert json.loads(outcome.out)["state"] == "failed"
    assert "Batch batch-1 failed: the fake says so" in outcome.err


def test_flags_become_plan_options(
    terminal: Terminal, background_coordinator: FakeCoordinator, prompts: Path, tmp_path: Path
) -> None:
    """--scheme forces one precision; other people's devices are not forced into the pipeline."""
    arguments = ("run-batch", "-i", prompts, "-o", tmp_path / "o", "--coordinator", background_coordinator.address)
    terminal.run(
        *arguments,
        "--model",
        STORIES,
        "--scheme",
        "w4",
        "--group",
        0,
        "--quality-budget",
        0.5,
        "--max-tokens",
        9,
        "--indicator",
        "hessian",
    )
    options = background_coordinator.submissions[0]
    assert options.model == str(STORIES)
    assert options.default_max_tokens == 9
    assert list(options.plan_options.allowed_schemes) == ["w4"]
    assert (options.plan_options.group_size, options.plan_options.quality_budget) == (0, 0.5)
    assert options.plan_options.indicator == "hessian"
    assert not options.plan_options.use_all_devices


def test_results_fetches_a_batch_again(terminal: Terminal, address: str, prompts: Path, tmp_path: Path) -> None:
    """After a lost terminal, the same files and the same document can be had by the batch's id."""
    first = terminal.run("run-batch", "-i", prompts, "-o", tmp_path / "a", "--coordinator", address, "--json")
    again = terminal.run("results", "batch-1", "-o", tmp_path / "b", "--coordinator", address, "--json")
    assert again.status == 0
    assert json.loads(again.out) == json.loads(first.out) | {"output": str(tmp_path / "b")}
    assert (tmp_path / "b").read_text() == (tmp_path / "a").read_text()


def test_cancel_says_where_the_batch_stands(terminal: Terminal, address: str, prompts: Path, tmp_path: Path) -> None:
    """The state afterwards, for people and for programs."""
    terminal.run("run-batch", "-i", prompts, "-o", tmp_path / "o", "--coordinator", address)
    assert "batch-1 is cancelled" in terminal.run("cancel", "batch-1", "--coordinator", address).out
    document = json.loads(terminal.run("cancel", "batch-1", "--coordinator", address, "--json").out)
    assert document["state"] == "cancelled"
    assert set(document) == BATCH_KEYS


def test_status_shows_cluster_and_batches(
    terminal: Terminal, address: str, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members and batches, or one batch with its plan and measured beside predicted times."""
    terminal.run("run-batch", "-i", prompts, "-o", tmp_path / "o", "--coordinator", address)
    monkeypatch.setenv("LLMPQ_COORDINATOR", address)
    whole = json.loads(terminal.run("status", "--json").out)
    assert set(whole) == {"stages", "planner_address", "batches"}
    assert whole["stages"][0]["description"]["cpu_class"] == "avx2"
    assert set(whole["batches"][0]) == BATCH_KEYS
    one = json.loads(terminal.run("status", "batch-1", "--json").out)
    assert set(one) == BATCH_KEYS | {"plan"}
    assert one["plan"]["hash"] == PLAN.hash
    table = terminal.run("status", "batch-1").out
    for text in ("w8 x2, w4 x1", "1.6 kB of 2.0 kB", "12.5 -> 13.8", "3.50 -> 3.15"):
        assert text in table
    assert "1.0 GB" in terminal.run("status").out


def test_tables_keep_names_whole_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, addresses and states can be copied, brackets are no markup, and a single layer is not a range."""
    batch = Batch("batch_" + "0" * 32, BatchState.COMPLETED, "", "models/stories260K", 4, 3, 1, 8, 32, 0)
    device = DeviceDescription("cpu", "CPU", "avx512", 16, 10**10, 10**9, ("w16", "w8", "w8a8", "w4", "w3"), 4)
    member = ClusterStage("[rack]", "192.168.100.100:50051", device, PLAN.hash)
    monkeypatch.setattr(stdout, "width", 80)
    with stdout.capture() as captured:
        stdout.print(batch_table([batch]), cluster_table(Cluster((member,), "127.0.0.1:8")), plan_table(PLAN))
    shown = captured.get()
    for text in (batch.batch_id, "completed", "3 of 4,", "[rack]", member.address):
        assert text in shown
    assert re.search(r"^slow +3 +w4 x1", shown, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 80


def test_plan_compares_strategies(terminal: Terminal, address: str) -> None:
    """A table for each plan; a strategy without one says why; --json has both."""
    arguments = ("plan", "--model", "m", "--batch", 8, "--prompt-len", 16, "--gen-len", 4, "--coordinator", address)
    outcome = terminal.run(*arguments, "--strategy", "all")
    assert outcome.status == 0
    assert "w8 x2, w4 x1" in outcome.out
    assert "uniform: No precision fits." in outcome.err
    document = json.loads(terminal.run(*arguments, "--strategy", "all", "--json").out)
    assert {key: document[key] for key in ("model", "batch", "prompt_len", "gen_len")} == {
        "model": "m",
        "batch": 8,
        "prompt_len": 16,
        "gen_len": 4,
    }
    assert [entry["strategy"] for entry in document["plans"]] == list(STRATEGIES)
    uniform = next(entry for entry in document["plans"] if entry["strategy"] == "uniform")
    assert (uniform["plan"], uniform["error"], uniform["stages"]) == (None, "No precision fits.", [])
    assert document["simulated"] is False
    assert terminal.run(*arguments, "--strategy", "uniform").status == 1


def test_sensitivity_shows_a_bar_for_each_layer_and_scheme(
    terminal: Terminal, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bars grow with the logarithm of the rating, sums are at the bottom, and w16 costs nothing to show."""
    monkeypatch.setattr(stdout, "width", 80)
    outcome = terminal.run("sensitivity", "--model", "models/m", "--coordinator", address)
    assert outcome.status == 0
    assert "Measuring" in outcome.err
    shown = outcome.out
    for text in ("m: hessian, nearest rounding, groups of 64", "from 1e-05 to 1", "w8", "w4"):
        assert text in shown
    assert "w16" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    rows = [line.split() for line in shown.splitlines()]
    assert [row[1::2] for row in rows if row[:1] in (["0"], ["1"])] == [["9.09e-05", "0.0909"], ["0.000909", "0.909"]]
    assert ["all", "0.001", "1"] in rows
    bars = [len(bar) for row in rows if row[:1] in (["0"], ["1"]) for bar in row[2::2]]
    assert bars[0] < bars[2] < bars[1] < bars[3]


def test_sensitivity_as_a_document(terminal: Terminal, background_coordinator: FakeCoordinator, tmp_path: Path) -> None:
    """--json prints what --output writes: each layer at each scheme, and what was asked."""
    arguments = ("sensitivity", "--model", "models/m", "--coordinator", background_coordinator.address)
    asked = ("--scheme", "w4", "--scheme", "w8", "--indicator", "loss", "--rounding", "hqq", "--group", 128)
    outcome = terminal.run(*arguments, *asked, "--output", tmp_path / "m.json", "--json")
    document = json.loads(outcome.out)
    assert json.loads((tmp_path / "m.json").read_text()) == document
    settings = {key: document[key] for key in ("model", "indicator", "rounding", "symmetric", "group")}
    assert settings == {"model": "models/m", "indicator": "loss", "rounding": "hqq", "symmetric": False, "group": 128}
    assert [row["layer"] for row in document["layers"]] == [0, 1]
    assert document["layers"][1]["omega"] == {"w8": pytest.approx(0.01 / 11), "w4": pytest.approx(10 / 11)}
    assert document["total"] == {"w8": pytest.approx(0.001), "w4": pytest.approx(1)}
    (options,) = background_coordinator.rating_options
    assert (options.indicator, options.rounding.method, options.group_size) == ("loss", "hqq", 128)
    assert list(options.allowed_schemes) == ["w4", "w8"]


def test_errors_are_one_line_without_a_traceback(terminal: Terminal, address: str, tmp_path: Path) -> None:
    """What the coordinator, the network and the file system refuse exits with 1 and names the object."""
    output = tmp_path / "missing" / "o.jsonl"
    prompts = tmp_path / "in.jsonl"
    prompts.write_text("{}\n")
    cluster_file, latin, bare_model = tmp_path / "cluster.yaml", tmp_path / "latin.txt", tmp_path / "model"
    cluster_file.write_text("state: in.jsonl\nstages: [{name: a}]\n")
    latin.write_bytes("café".encode("latin-1"))
    bare_model.mkdir()
    (bare_model / "config.json").write_bytes((STORIES / "config.json").read_bytes())
    cases = [
        (("status", "batch-9", "--coordinator", address), "There is no batch 'batch-9'."),
        (("cancel", "batch-9", "--coordinator", "127.0.0.1:1"), "127.0.0.1:1"),
        (("run-batch", "-i", prompts, "-o", output, "--coordinator", address), "missing"),
        (("up", tmp_path / "none.yaml"), "No cluster file"),
        (("up", cluster_file), f"Cannot make the state directory '{prompts}': File exists."),
        (("eval", "ppl", "--model", STORIES, "--text", latin), f"{latin}: not UTF-8, at byte 3."),
        (
            ("eval", "ppl", "--model", bare_model, "--text", prompts),
            f"'{bare_model}' has no tokenizer: expected one of",
        ),
    ]
    for arguments, named in cases:
        outcome = terminal.run(*arguments)
        assert outcome.status == 1
        assert outcome.err.splitlines()[-1].startswith("error: ")
        assert named in outcome.err
        assert "Traceback" not in outcome.err
        assert outcome.out == ""


def test_an_unknown_batch_leaves_the_output_alone(terminal: Terminal, address: str, tmp_path: Path) -> None:
    """Answers that are there already are not lost to a mistyped id."""
    output = tmp_path / "out.jsonl"
    output.write_text("precious\n")
    assert terminal.run("results", "batch-9", "-o", output, "--coordinator", address).status == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious\n"]


def test_wrong_usage_exits_with_2_and_teaches(terminal: Terminal, prompts: Path, tmp_path: Path) -> None:
    """What can be told from the flags alone is refused before anything is started."""
    batch = ("run-batch", "-i", prompts, "-o", tmp_path / "o")
    cases = [
        (("status",), "LLMPQ_COORDINATOR"),
        (("status", "--coordinator", "localhost"), "is not HOST:PORT"),
        ((*batch, "--coordinator", "h:1", "--stages", 2), "not both"),
        ((*batch, "--scheme", "w5"), "w16, w8, w8a8, w4, w3"),
        ((*batch, "--group", 7), "0, 32, 64, 128"),
        ((*batch, "--indicator", "guess"), "hessian, variance, loss, random"),
        (("sensitivity", "--model", "m", "--scheme", "w5"), "w16, w8, w8a8, w4, w3"),
        (("sensitivity", "--model", "m", "--scheme", "w16"), "costs nothing"),
        ((*batch, "--quality-weight", 1, "--quality-budget", 1), "not both"),
        (("sensitivity", "--model", "m", "--output", tmp_path / "none" / "x.json"), "Cannot write to the directory"),
        (("fidelity", "--model", "m", "--output", tmp_path / "none" / "x.json"), "Cannot write to the directory"),
        ((*batch, "--scheme", "w8", "--group", 32), "for w4 and w3"),
        ((*batch, "--precisions", "w16*2,w8a8", "--symmetric"), "for w4 and w3"),
        (("run-batch", "-i", prompts, "-o", prompts), "replace the input"),
        (("run-batch", "-i", tmp_path / "none", "-o", "o"), "does not exist"),
    ]
    for arguments, taught in cases:
        outcome = terminal.run(*arguments)
        assert outcome.status == 2
        assert taught in " ".join(outcome.err.replace("│", " ").split())


def test_every_command_teaches_by_example_and_names_its_json_keys(terminal: Terminal) -> None:
    """--help of each command has examples and the keys of its document."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    names = [(name,) for name in commands if name not in {"eval", "bench"}] + [("eval", "ppl"), ("eval", "tasks")]
    assert len(names) == 13
    for name in names:
        outcome = terminal.run(*name, "--help")
        assert outcome.status == 0
        assert f"llmpq {' '.join(name)} " in outcome.out
        for part in ("Examples", "JSON keys", "--json"):
            assert part in outcome.out


def test_ctrl_c_says_how_to_rejoin(background_coordinator: FakeCoordinator, prompts: Path, tmp_path: Path) -> None:
    """The batch goes on at the coordinator; the command that fetches its answers is printed."""
    background_coordinator.is_stuck = True
    address, output = background_coordinator.address, tmp_path / "out.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "llmpq.cli", "run-batch", "-i", prompts, "-o", output, "--coordinator", address],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert process.stderr is not None
    said = ""
    while "running" not in said:
        said += process.stderr.readline()
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert f"llmpq results batch-1 -o {output} --coordinator {address}" in said
    assert "Traceback" not in said
    assert not output.exists()
