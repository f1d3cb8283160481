"""What `llmpq bench` compares, how it counts, and that real systems take part."""

import importlib.util
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import psutil
import pytest
import torch
from terminal import Terminal

from llmpq.bench import peers
from llmpq.bench.comparison import Comparison
from llmpq.bench.machine import describe_machine, machine_line
from llmpq.bench.model_files import bench_files
from llmpq.bench.peer_system import PeerChoice, PeerSystem, installed_peers
from llmpq.bench.picture import Bar, bar_chart
from llmpq.bench.system import Run
from llmpq.bench.throughput import perplexity, run_figures, summarized, take_turns
from llmpq.bench.wire import time_wire
from llmpq.bench.workload import Workload, equal_lengths, sharegpt_lengths
from llmpq.errors import InvalidInputError, NotFoundError, UnavailableError

TEXT = list(range(4158))


class FakeSystem:
    """Answers everything at a fixed rate, and notes what it is asked."""

    settings = version = ""

    def __init__(self, name: str, wall_s: float, calls: list[tuple[str, int]]) -> None:
        self.name = name
        self.wall_s = wall_s
        self._calls = calls

    async def run(self, workload: Workload) -> Run:
        """Takes as long whatever the work."""
        self._calls.append((self.name, sum(workload.max_tokens)))
        return Run(self.wall_s, sum(workload.max_tokens))

    async def score(self, windows: Sequence[Sequence[int]]) -> float:
        """Every token has probability 1/8."""
        return -3 * sum(len(window) - 1 for window in windows) * float(torch.log(torch.tensor(2.0)))


def test_prompts_have_their_lengths_and_no_prefix_in_common() -> None:
    """A system that remembers prefixes gains nothing by it."""
    workload = equal_lengths(TEXT, 128, 16, 5)

    assert workload.name == "128 x 16 -> 5"
    assert {len(prompt) for prompt in workload.prompts} == {16}
    assert len({prompt[0] for prompt in workload.prompts}) == 128
    assert set(workload.max_tokens) == {5}
    assert workload.max_length == 21
    assert workload.num_tokens == len(workload.prompts) * 21


def test_real_lengths_are_clipped_to_the_context() -> None:
    """200 lengths of conversations, the same ones every time, none beyond the model."""
    workload = sharegpt_lengths(TEXT, 200, [2], 300)

    assert workload == sharegpt_lengths(TEXT, 200, [2], 300)
    assert workload.max_length == 300
    assert len(set(workload.max_tokens)) > 100
    assert min(map(len, workload.prompts)) >= 1
    assert workload.stops == (2,)
    roomy = sharegpt_lengths(TEXT, 200, [2], 8192)
    assert max(map(len, roomy.prompts)) == 1024
    assert roomy.max_length <= 2048


def test_a_tail_is_rated_by_its_own_time() -> None:
    """The rate over the last twentieth of the time against the mean rate."""
    assert Run(10.0, 100, ((9.0, 90), (9.6, 5), (10.0, 5))).tail_ratio() == pytest.approx(2.0)
    assert Run(10.0, 100, ((9.0, 99), (10.0, 1))).tail_ratio() == pytest.approx(0.2)
    assert Run(10.0, 100).tail_ratio() is None


async def test_systems_take_turns_after_a_warm_up() -> None:
    """Warm-ups come first and are not counted; then every turn has each system once, in order."""
    calls: list[tuple[str, int]] = []
    systems = [FakeSystem("a", 1.0, calls), FakeSystem("b", 2.0, calls)]
    kept: list[tuple[str, int, float]] = []

    await take_turns(
        systems,
        equal_lengths(TEXT, 2, 8, 50),
        2,
        lambda system, turn, figures: kept.append((system.name, turn, figures["tokens_per_s"])),
        has_phases=False,
    )

    assert [name for name, _ in calls] == ["a", "b"] * 3
    assert [tokens for _, tokens in calls] == [8, 8, 100, 100, 100, 100]
    assert kept == [("a", 0, 100.0), ("b", 0, 50.0), ("a", 1, 100.0), ("b", 1, 50.0)]


def test_rates_of_the_phases_come_from_the_prompts_alone() -> None:
    """What the prompts take with one token each is prefill, the rest decode."""
    figures = run_figures(Run(3.0, 64), equal_lengths(TEXT, 4, 25, 16), Run(1.0, 4))

    assert (figures["prefill_tokens_per_s"], figures["decode_tokens_per_s"]) == (100.0, 30.0)


def test_ratios_are_taken_within_turns() -> None:
    """A turn that is slow for all changes no ratio; turns that only one took count for its own median."""
    rates = {"ours": [(0, 10.0), (1, 2.0), (2, 8.0)], "theirs": [(0, 5.0), (1, 1.0), (3, 100.0)]}
    runs = {
        name: [{"turn": turn, "tokens_per_s": rate, "wall_s": 1 / rate} for turn, rate in own]
        for name, own in rates.items()
    }

    summaries = summarized(runs)

    assert (summaries["ours"]["tokens_per_s"], summaries["ours"]["ratio"]) == (8.0, 1.0)
    assert (summaries["theirs"]["tokens_per_s"], summaries["theirs"]["ratio"]) == (5.0, 2.0)
    assert summaries["theirs"]["num_runs"] == 3


async def test_perplexity_counts_all_tokens_but_the_first_of_a_window() -> None:
    """Tokens of probability 1/8 make a perplexity of 8."""
    assert await perplexity(FakeSystem("a", 1.0, []), [[1, 2, 3], [4, 5]]) == pytest.approx(8.0)


def test_runs_are_only_added_to_those_of_the_same_work(tmp_path: Path) -> None:
    """Figures of another workload would make medians of unlike things."""
    file = tmp_path / "figures.json"
    file.write_text(json.dumps({"model": "m", "workload": "32 x 128 -> 64", "systems": []}))

    with pytest.raises(InvalidInputError, match="32 x 128"):
        Comparison({"model": "m", "workload": "8 x 128 -> 64"}, file, lambda _: None).take_up(file)


def test_peers_are_found_by_their_environments(tmp_path: Path) -> None:
    """Transformers is always there; another needs a directory of its name with a Python."""
    python = tmp_path / "vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()

    names = [choice.name for choice in installed_peers(tmp_path)]

    assert names == ["transformers", "vllm-w8a8", "vllm-fp32"]
    assert [choice.name for choice in installed_peers(None)] == ["transformers"]
    rpc = PeerChoice("llamacpp-rpc-q8_0", python)
    assert (rpc.module, rpc.variant) == ("llamacpp_peer", "rpc-q8_0")
    with pytest.raises(NotFoundError, match="llamacpp"):
        PeerChoice.of_name("llamacpp-q4_0", tmp_path)
    with pytest.raises(InvalidInputError, match="tgi"):
        PeerChoice.of_name("tgi", tmp_path)


async def test_a_peer_computes_only_in_its_turn(stories260k: str, tmp_path: Path) -> None:
    """Between jobs all its processes are stopped; afterwards they are gone. It answers as many tokens as asked."""
    choice = PeerChoice("transformers", Path(sys.executable))
    others = psutil.Process().children()
    async with PeerSystem.started(choice, {"model": stories260k, "threads": 1}, tmp_path / "log") as peer:
        run = await peer.run(Workload("two", ((1, 5, 9), (1, 7)), (4, 2)))
        [process] = [child for child in psutil.Process().children() if child not in others]

        assert process.status() == psutil.STATUS_STOPPED
        assert run.generated_tokens == 6
        assert [tokens for _, tokens in run.steps] == [2, 2, 1, 1]
        assert all(before <= after for (before, _), (after, _) in pairwise(run.steps))
        assert run.steps[-1][0] <= run.wall_s
        assert peer.version
    assert not psutil.pid_exists(process.pid)


async def test_a_peer_that_fails_says_why(tmp_path: Path) -> None:
    """The error names the peer, its own words and its log."""
    choice = PeerChoice("transformers", Path(sys.executable))

    with pytest.raises(UnavailableError, match=r"transformers: .*nowhere.*log"):
        async with PeerSystem.started(choice, {"model": "/nowhere", "threads": 1}, tmp_path / "log"):
            pass


def test_the_mesh_is_compared_with_transformers(terminal: Terminal, stories260k: str, tmp_path: Path) -> None:
    """Both do the same work; at 16 bits the perplexity is about the same; the keys of the document are stable."""
    file, picture = tmp_path / "figures.json", tmp_path / "figures.svg"
    work = ("--requests", 3, "--prompt-len", 8, "--gen-len", 5, "--runs", 2, "--quality-tokens", 64, "--phases")
    flags = ("--model", stories260k, "--scheme", "w16", "--stages", 1, "--peer", "transformers")

    outcome = terminal.run("bench", "throughput", *flags, *work, "--json", file, "--picture", picture)

    assert outcome.status == 0
    document = json.loads(file.read_text())
    assert {"machine", "model", "workload", "text", "systems", "left_out"} == document.keys()
    ours, theirs = document["systems"]
    assert (ours["name"], theirs["name"]) == ("llmpq-w16-1", "transformers")
    for system in (ours, theirs):
        assert [run["generated_tokens"] for run in system["runs"]] == [15, 15]
        assert min(system[key] for key in ("tokens_per_s", "wall_s", "prefill_tokens_per_s", "decode_tokens_per_s")) > 0
        assert system["tail_ratio"] is not None
    assert ours["ratio"] == 1.0
    assert theirs["ratio"] > 0
    assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=0.03)  # theirs may be in bfloat16
    assert "llmpq-w16-1" in outcome.out
    assert "transformers" in picture.read_text()


def test_wrong_usage_is_refused(terminal: Terminal, stories260k: str) -> None:
    """A scheme, peer, or kind of lengths that is not known, and adding to no file."""
    command = ("bench", "throughput", "--model", stories260k)

    assert terminal.run(*command, "--scheme", "w5").status == 2
    assert terminal.run(*command, "--lengths", "azure").status == 2
    assert terminal.run(*command, "--add").status == 2
    assert terminal.run(*command, "--peer", "tgi").status == 1
    assert terminal.run("bench", "wire", "--payload", "2GiB").status == 2
    assert terminal.run("bench", "kernels", "--shape", "64").status == 2


@pytest.mark.exhaustive
def test_startup_is_timed_to_the_first_token(terminal: Terminal, stories260k: str) -> None:
    """Two real runs, from an empty cache and from what the first one left there."""
    outcome = terminal.run(
        "bench", "startup", "--model", stories260k, "--stages", 1, "--scheme", "w16", "--runs", 1, "--json", "-"
    )

    document = json.loads(outcome.out)
    assert document["first_s"] > 0
    assert document["second_s"] > 0
    assert len(document["runs"]) == 1


async def test_frames_go_to_another_process_and_back() -> None:
    """Every payload is timed by both transports, and encoding is a part of the round trip."""
    timings = await time_wire([4096, 2**20])

    sizes = [(timing.transport, timing.payload_bytes) for timing in timings]
    assert sizes == [("local", 4096), ("local", 2**20), ("gRPC", 4096), ("gRPC", 2**20)]
    for timing in timings:
        assert timing.round_trip_ms > 0
        assert timing.bytes_per_s > 0
        assert 0 < timing.serialization_share < 1


def test_kernels_of_every_scheme_are_timed_beside_torch(terminal: Terminal) -> None:
    """In a process of its own, which says what it runs on."""
    flags = ("--threads", 1, "--shape", "64x64", "--rows", 2, "--json", "-")

    outcome = terminal.run("bench", "kernels", *flags)

    document = json.loads(outcome.out)
    names = {timing["name"] for timing in document["timings"]}
    assert {"fp32 torch", "fp32 oneDNN", "w16", "w8", "w8a8", "w4 group 64", "w3 group 64"} <= names
    assert document["process"]["threads"] == "1"
    assert max(timing["ratio"] for timing in document["timings"] if timing["name"].startswith("fp32")) == 1.0


def test_the_machine_is_described() -> None:
    """CPU, cores and versions are there, and a line for people names the CPU and the day."""
    machine = describe_machine()

    assert machine["cores"] >= 1
    assert torch.__version__.startswith(machine["versions"]["torch"])
    assert machine["cpu"] in machine_line(machine)
    assert machine["time"][:10] in machine_line(machine)


def test_a_picture_draws_bars_to_one_scale() -> None:
    """The document is XML, text is escaped, and bars are as long as their values say."""
    root = ET.fromstring(bar_chart("a < b", [Bar("one", 1.0, "1"), Bar("two", 2.0, "2", is_ours=True)], "here"))  # noqa: S314 made here

    bars = [float(box.get("width", "")) for box in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert bars[1] == pytest.approx(2 * bars[0], rel=1e-2)
    assert "a < b" in {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}


def test_an_unquantized_directory_is_used_as_it_is(random_opt: str) -> None:
    """Nothing is written for systems that read it."""
    files = bench_files(random_opt)

    assert (files.directory, files.gguf) == (Path(random_opt).resolve(), "")


def test_vllm_reads_rounded_projections() -> None:
    """int8 per output channel within half a step of the weight; other tensors as they are."""
    module = _script("vllm_checkpoint")
    weight = torch.randn(6, 10, dtype=torch.float16)

    rounded = module._rounded({"a.q_proj.weight": weight, "a.norm.weight": weight})

    scale = rounded["a.q_proj.weight_scale"]
    assert (rounded["a.q_proj.weight"].dtype, scale.shape) == (torch.int8, (6, 1))
    restored = rounded["a.q_proj.weight"] * scale
    assert ((restored - weight.float()).abs() <= scale / 2 + 1e-6).all()
    assert rounded["a.norm.weight"] is weight


def _script(name: str) -> ModuleType:
    """A script of the peers, which runs in an environment where it is on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(peers.__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
