"""`llmpq plan --cluster`, with a real planner process, without devices or weights."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from fake_coordinator import FakeCoordinator
from terminal import Terminal

from llmpq.cli.terminal import stdout
from llmpq.messages import to_message
from llmpq.plan import OFFLOADING_STRATEGIES, STRATEGIES, LengthBucket, PlanningProblem
from llmpq.planner_client import PlannerClient, local_planner
from llmpq.scenario import Scenario
from llmpq.v1 import planner_service_pb2

WORK = ("--batch", 8, "--prompt-len", 128, "--gen-len", 16)
CLUSTER = """
hosts: [{devices: {T4: 1, V100-16: 1}, memory_gib: 64, link: {gb_per_s: 12, latency_us: 15}}]
usd_per_h: {T4: 0.5, V100-16: 2}
"""


@pytest.fixture(scope="module")
def planner() -> Iterator[str]:
    """A planner process for all tests of this file."""
    addresses: list[str] = []
    is_up, is_over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with local_planner() as address:
            addresses.append(address)
            is_up.set()
            await asyncio.to_thread(is_over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    is_up.wait()
    yield addresses[0]
    is_over.set()
    thread.join()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """A terminal."""
    return Terminal(monkeypatch, capsys)


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A cluster of the user's own."""
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    return path


def test_all_strategies_side_by_side(terminal: Terminal, planner: str, cluster: Path) -> None:
    """--json has each strategy with the documented keys; what is simulated says so, and llm-pq is the fastest."""
    outcome = terminal.run(
        *("plan", "--cluster", cluster, "--model", "opt-6.7b", *WORK, "--planner", planner),
        *("--strategy", "all", "--time-limit", 2, "--json"),
    )
    assert outcome.status == 0
    document = json.loads(outcome.out)
    assert document["simulated"] is True
    assert document["model"] == "opt-6.7b"
    plans = {entry["strategy"]: entry for entry in document["plans"]}
    assert list(plans) == [*STRATEGIES, *OFFLOADING_STRATEGIES]
    keys = {"strategy", "status", "throughput_tokens_per_s", "quality_loss", "solve_s", "gap", "stages"}
    for entry in plans.values():
        assert keys <= set(entry)
        assert entry["throughput_tokens_per_s"] == entry["simulation"]["throughput_tokens_per_s"]
        assert sum(len(stage.get("layers", ())) or stage["num_layers"] for stage in entry["stages"]) == 32
    assert plans["llm-pq"]["status"] == "optimal"
    assert plans["flexgen"]["plan"] is None
    assert plans["flexgen"]["offload"]["stages"][0]["host_bytes"] >= 0


def test_a_table_and_a_picture(terminal: Terminal, planner: str, tmp_path: Path) -> None:
    """The table has a line for each strategy; the picture is SVG with a bar for each."""
    picture = tmp_path / "plans.svg"
    arguments = ("plan", "--cluster", "paper:1", *WORK, "--planner", planner, "--time-limit", 1)
    outcome = terminal.run(*arguments, "--strategy", "all", "--picture", picture)
    assert outcome.status == 0
    assert "Simulated" in outcome.err
    drawing = ET.parse(picture).getroot()  # noqa: S314 our own
    bars = drawing.findall(".//{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 1 + len(STRATEGIES) + len(OFFLOADING_STRATEGIES)
    for strategy in (*STRATEGIES, *OFFLOADING_STRATEGIES):
        assert strategy in outcome.out
    assert terminal.run(*arguments, "--picture", tmp_path / "plans.gif").status == 2


def test_explained(terminal: Terminal, planner: str, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--explain shows what limits each stage, and counterfactuals; --json has both."""
    monkeypatch.setattr(stdout, "width", 100)
    arguments = ("plan", "--cluster", cluster, "--model", "opt-1.3b", *WORK, "--planner", planner, "--time-limit", 1)
    outcome = terminal.run(*arguments, "--explain")
    assert outcome.status == 0
    for text in ("what limits each stage", "one more device like T4-0", "without V100-16-0"):
        assert text in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 100
    document = json.loads(terminal.run(*arguments, "--explain", "--json").out)
    assert {case["change"] for case in document["explanation"]["counterfactuals"]} >= {"without T4-0"}
    assert document["plans"][0]["status"] == "optimal"


def test_traded(terminal: Terminal, planner: str, tmp_path: Path) -> None:
    """--pareto shows the front of throughput and quality, as a table, a picture and values."""
    picture = tmp_path / "front.svg"
    arguments = ("plan", "--cluster", "paper:1", *WORK, "--planner", planner, "--time-limit", 1, "--pareto")
    outcome = terminal.run(*arguments, "--picture", picture)
    assert outcome.status == 0
    assert "throughput against quality" in outcome.out
    assert "<path" in picture.read_text()
    front = json.loads(terminal.run(*arguments, "--json").out)["pareto"]
    losses, rates = zip(*((point["quality_loss"], point["throughput_tokens_per_s"]) for point in front), strict=True)
    assert list(losses) == sorted(losses)
    assert list(rates) == sorted(rates)


def test_a_mesh_is_explained_and_traded(
    terminal: Terminal, planner: str, background_coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    """What is measured on a mesh is explained, traded and drawn by any planner as a described cluster is."""

    async def measured() -> PlanningProblem:
        async with PlannerClient(planner) as client:
            return await client.resolve(Scenario(cluster_name="paper:1", workload=(LengthBucket(1, 1, 1),)))

    background_coordinator.problem = to_message(asyncio.run(measured()), planner_service_pb2.PlanningProblem)
    arguments = ("plan", "--coordinator", background_coordinator.address, "--model", "m", *WORK, "--planner", planner)
    explained = terminal.run(*arguments, "--time-limit", 1, "--explain")
    assert explained.status == 0
    assert "what limits each stage" in explained.out
    assert "measured" in explained.err
    picture = tmp_path / "front.svg"
    traded = terminal.run(*arguments, "--time-limit", 1, "--pareto", "--picture", picture, "--json")
    document = json.loads(traded.out)
    assert (document["model"], document["batch"], document["simulated"]) == ("m", 8, False)
    assert document["pareto"]
    assert "<path" in picture.read_text()


def test_one_strategy_that_offloads(terminal: Terminal, planner: str) -> None:
    """Alone, flexgen shows what it keeps where, and that no mesh can run it."""
    outcome = terminal.run("plan", "--cluster", "paper:2", *WORK, "--planner", planner, "--strategy", "flexgen")
    assert outcome.status == 0
    assert "the mesh cannot run it" in " ".join(outcome.out.split())


def test_cost_under_a_deadline(terminal: Terminal, planner: str, cluster: Path) -> None:
    """The cheapest plan costs no more than the fastest; a deadline that nothing meets is an error."""
    arguments = ("plan", "--cluster", cluster, "--model", "opt-6.7b", *WORK, "--planner", planner, "--json")
    arguments = (*arguments, "--quality-weight", 0)
    fastest = json.loads(terminal.run(*arguments).out)["plans"][0]["plan"]["estimate"]
    cheapest = json.loads(terminal.run(*arguments, "--objective", "cost").out)["plans"][0]["plan"]["estimate"]
    assert 0 < cheapest["cost_usd"] <= fastest["cost_usd"] * 1.002
    assert fastest["total_s"] <= cheapest["total_s"] * 1.002
    outcome = terminal.run(*arguments, "--objective", "cost", "--deadline", 1e-3)
    assert outcome.status == 1
    assert json.loads(outcome.out)["plans"][0]["status"] == "deadline_infeasible"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--cluster", "paper:1", "--model", "opt-31b", *WORK), 1, "There is no model 'opt-31b'; did you mean opt-30b"),
        (("--cluster", "paper:12", *WORK), 1, "There is no cluster 'paper:12'"),
        (("--cluster", "none.yaml", *WORK), 1, "none.yaml"),
        (("--cluster", "paper:1", "--kernels", "fast", *WORK), 1, "There is no kernel set 'fast'"),
        (("--cluster", "paper:1", "--batch", 8, "--lengths", "mine"), 1, "There is no distribution of lengths 'mine'"),
        (("--cluster", "paper:1", "--model", "bloom-176b", *WORK), 1, "bytes short"),
        (("--cluster", "paper:1", "--batch", 10**12, "--prompt-len", 8, "--gen-len", 8), 2, "--batch"),
        (("--cluster", "paper:1", "--batch", 8, "--prompt-len", 4000, "--gen-len", 8), 1, "the model accepts 2048"),
        (("--cluster", "paper:1", "--batch", -1, "--prompt-len", 8, "--gen-len", 8), 2, "--batch"),
        (("--cluster", "paper:1", "--batch", 8), 2, "--prompt-len"),
        (("--cluster", "paper:1", "--stages", 2, *WORK), 2, "--cluster"),
        (("--model", "m", "--kernels", "modern", *WORK), 2, "--cluster"),
        (("--cluster", "paper:4", "--objective", "cost", *WORK), 1, "give prices"),
        (("--cluster", "paper:3", "--objective", "beauty", *WORK), 1, "is 'beauty'"),
    ],
)
def test_bad_input_is_named(
    terminal: Terminal, planner: str, arguments: tuple[object, ...], status: int, said: str
) -> None:
    """Each mistake has its sentence and exit status: 2 for usage, 1 for what the planner refuses."""
    outcome = terminal.run("plan", *arguments, *(("--planner", planner) if "--cluster" in arguments else ()))
    assert outcome.status == status
    assert said in " ".join(outcome.err.split()).replace("│ ", "")
