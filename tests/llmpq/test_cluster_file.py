"""Cluster files, and clusters made up for a number of stages."""

import os
from pathlib import Path

import pytest

from llmpq.cluster_file import ClusterSpec, StageSpec, local_cluster, read_cluster_file
from llmpq.errors import InvalidInputError, NotFoundError

GOOD = """
listen: 127.0.0.1:50051
state: jobs
stages:
  - name: fast
    cpu_class: avx512
    cores: [0, 2]
    memory_budget: 150MB
  - name: card
    device: cuda:1
    memory_budget: 1000000
"""


def write(tmp_path: Path, text: str) -> Path:
    """A cluster file of this text."""
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


def test_a_cluster_file_is_read(tmp_path: Path) -> None:
    """Sizes have units, a relative state directory lies beside the file, what is left out has its default."""
    assert read_cluster_file(write(tmp_path, GOOD)) == ClusterSpec(
        stages=(
            StageSpec("fast", cpu_class="avx512", cores=(0, 2), memory_budget_bytes=150_000_000),
            StageSpec("card", device="cuda:1", memory_budget_bytes=1_000_000),
        ),
        listen="127.0.0.1:50051",
        state=tmp_path / "jobs",
    )


def test_the_shortest_cluster_file_is_one_name(tmp_path: Path) -> None:
    """Everything but the stages' names can be left out."""
    assert read_cluster_file(write(tmp_path, "stages: [{name: a}]")) == ClusterSpec((StageSpec("a"),))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("stages: [", "is not YAML"),
        ("just text", "the file: expected keys and values"),
        ("", "the file: expected keys and values"),
        ("stage: []", "unknown key 'stage'; known are listen, stages, state"),
        ("listen: a:1", "stages: expected a list of at least one stage"),
        ("stages: []", "stages: expected a list of at least one stage"),
        ("stages: [a]", r"stages\[0\]: expected keys and values"),
        ("stages: [{device: cpu}]", r"stages\[0\]\.name: every stage needs a name"),
        ("stages: [{name: a}, {name: a}]", "two stages are named 'a'"),
        ("stages: [{name: 7}]", r"stages\[0\]\.name: expected text, got 7"),
        ("stages: [{name: a, memory: 1GB}]", r"stages\[0\]: unknown key 'memory'; known are cores, cpu_class"),
        ("stages: [{name: a, memory_budget: lots}]", r"stages\[0\]\.memory_budget: 'lots' is not a size"),
        ("stages: [{name: a, cores: 0}]", r"stages\[0\]\.cores: expected a list of core numbers"),
        ("stages: [{name: a, cores: [-1]}]", r"stages\[0\]\.cores: expected a list of core numbers"),
        ("stages: [{name: a, cpu_class: mmx}]", r"stages\[0\]\.cpu_class: 'mmx' is not one of avx512, avx2, sse4"),
        ("{listen: 50051, stages: [{name: a}]}", "listen: expected text, got 50051"),
        ("{listen: 'a:99999', stages: [{name: a}]}", "listen: 'a:99999' is no address; expected HOST:PORT"),
        ("{listen: 'a:-1', stages: [{name: a}]}", "listen: 'a:-1' is no address; expected HOST:PORT"),
        ("stages: [{name: a, cores: [true]}]", r"stages\[0\]\.cores: expected a list of core numbers"),
        ("stages: [{name: ' '}]", r"stages\[0\]\.name: every stage needs a name"),
        ("stages: [{name: -a}]", r"stages\[0\]\.name: '-a' begins with '-'"),
        ("stages:\n- name: a\n  name: b", "is not YAML: the key 'name' is repeated, in line 3"),
        ("{stages: [{name: a}], stages: [{name: b}]}", "is not YAML: the key 'stages' is repeated, in line 1"),
    ],
)
def test_a_mistake_is_named_by_file_and_place(tmp_path: Path, text: str, problem: str) -> None:
    """The error says which file, which entry and what was expected."""
    path = write(tmp_path, text)
    with pytest.raises(InvalidInputError, match=problem) as refused:
        read_cluster_file(path)
    assert str(path) in refused.value.message
    assert refused.value.message.endswith(".")
    assert not refused.value.message.endswith("..")
    assert "\n" not in refused.value.message


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    """The error names it."""
    with pytest.raises(NotFoundError, match=r"none\.yaml"):
        read_cluster_file(tmp_path / "none.yaml")


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_made_up_stages_share_the_cores_and_the_memory(num_stages: int) -> None:
    """Every stage has a core and a budget; no core is idle; together they leave memory to the rest of the host."""
    cluster = local_cluster(num_stages)
    usable = os.sched_getaffinity(0)
    assert len({stage.name for stage in cluster.stages}) == num_stages
    assert all(stage.cores and set(stage.cores) <= usable for stage in cluster.stages)
    if num_stages <= len(usable):
        assert sorted(core for stage in cluster.stages for core in stage.cores) == sorted(usable)
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < sum(stage.memory_budget_bytes for stage in cluster.stages) < total_bytes
