"""What the catalog has, what users add to it, and plans that are made from it."""

from dataclasses import replace

import pytest

from llmpq.device import Phase
from llmpq.errors import InvalidInputError, NotFoundError
from llmpq.plan import LengthBucket, PlanningProblem, PlanOptions
from planner_svc.catalog.catalog import Catalog, read_catalog, read_cluster
from planner_svc.catalog.law import LayerSize
from planner_svc.latency import DeviceLatency
from planner_svc.planner import Planner
from planner_svc.validation import check_problem
from planner_svc.workload import Load

CATALOG = read_catalog()
ADDED = """
devices:
  L20: {compute_capability: 8.9, memory_gib: 44.5, memory_gb_per_s: 864, fp16_tflops: 119.5, int8_tops: 239, source: s}
  T4: {compute_capability: 7.5, memory_gib: 8, memory_gb_per_s: 320, fp16_tflops: 65, source: half of it}
kernels:
  mine:
    source: measured
    attention: {kv_passes: 1}
    measured:
      L20: {w16: {tflops: 100, gb_per_s: 700}}
clusters:
  office:
    hosts: [{devices: {L20: 2}, link: {gb_per_s: 20}}]
"""


@pytest.mark.parametrize("kernels", CATALOG.kernels)
def test_every_kernel_set_speaks_of_known_devices(kernels: str) -> None:
    """Each device with kernels has a data sheet and w16; more rows never take less time, and some scheme is not w16."""
    size = LayerSize.of(CATALOG.shape("opt-13b"))
    for name in CATALOG.kernels[kernels].devices:
        device = CATALOG.device(name, kernels)
        assert {"w16"} < set(device.kernels)
        for scheme in device.kernels:
            law = device.layer_law(size, scheme, 64)
            for phase, loads in (
                (Phase.PREFILL, [Load.of(1, tokens, 0) for tokens in (1, 16, 64, 256, 1024)]),
                (Phase.DECODE, [Load.of(sequences, 1, 512) for sequences in (1, 4, 16, 64, 256)]),
            ):
                seconds = [law.seconds(phase, load) for load in loads]
                assert seconds[0] > 0
                assert seconds == sorted(seconds)


def test_every_device_has_modern_kernels() -> None:
    """Every device of the catalog can be planned with by default, and each figure has a source."""
    assert set(CATALOG.kernels["modern"].devices) == set(CATALOG.devices)
    assert all(sheet.source for sheet in CATALOG.devices.values())
    assert all(efficiency.source for kernels in CATALOG.kernels.values() for efficiency in kernels.efficiency.values())


def test_schemes_are_those_that_a_device_can_run() -> None:
    """No w8a8 without int8 units; no kernel that unpacks on the chip before compute capability 7.0."""
    assert "w8a8" not in CATALOG.device("V100-32").kernels
    assert "w8a8" in CATALOG.device("T4").kernels
    assert [kernel.expanded_bytes for kernel in CATALOG.device("P100-12").kernels["w4"]] == [2]
    assert [kernel.expanded_bytes for kernel in CATALOG.device("T4").kernels["w4"]] == [0, 2]


def test_budgets_are_those_of_the_paper() -> None:
    """95 % of what is visible, less 1,930 MiB: 12,428 MiB on a T4."""
    assert CATALOG.devices["T4"].budget_bytes == pytest.approx((0.95 * 14.76 * 1024 - 1930) * 2**20, abs=2)


def test_the_eleven_clusters_are_there() -> None:
    """`paper:1` to `paper:11`, of known devices, with the model that each was measured with."""
    for number in range(1, 12):
        cluster = CATALOG.cluster(f"paper:{number}")
        assert cluster.model in CATALOG.models
        for kernels in ("llm-pq-2023", "modern"):
            assert all(CATALOG.device(name, kernels).kernels for name in {place.name for place in cluster.devices})
    devices = [place.device_id for place in CATALOG.cluster("paper:3").devices]
    assert devices == ["T4-0", "T4-1", "T4-2", "V100-32-0"]


def test_a_device_beside_another_host_is_reached_over_the_slower_link() -> None:
    """Within one host its own link counts, between hosts the network if that is slower."""
    assert {place.link.gb_per_s for place in CATALOG.cluster("paper:10").devices} == {150}
    assert {place.link.gb_per_s for place in CATALOG.cluster("paper:6").devices} == {12.5}


@pytest.mark.parametrize("kernels", ["llm-pq-2023", "modern"])
def test_a_cluster_can_be_planned_for(kernels: str) -> None:
    """Profiles of virtual devices are named simulated, pass every check, and give a plan that mixes precisions."""
    shape = CATALOG.shape("opt-30b")
    devices = CATALOG.profiles(CATALOG.cluster("paper:3"), shape, 64, kernels)
    workload = (LengthBucket(prompt_tokens=512, output_tokens=100, count=32),)
    options = PlanOptions(time_limit_s=2.0, decode_micro_batch=8, num_lanes=4)
    problem = PlanningProblem("opt-30b", shape, devices, workload, options=options)
    check_problem(problem)
    plan = Planner(2.0).create(problem)
    assert all("simulated" in profile.description.name for profile in devices)
    assert plan.estimate.throughput_tokens_per_s > 0
    assert len({layer.scheme for stage in plan.stages for layer in stage.layers}) > 1


def test_latency_models_follow_the_law() -> None:
    """What the planner fits to a virtual device's points is the law, to 10 % on average, at other sizes."""
    shape = CATALOG.shape("opt-30b")
    size = LayerSize.of(shape)
    loads = {
        Phase.PREFILL: [Load.of(sequences, tokens, 0) for sequences in (1, 3, 6, 12) for tokens in (100, 384, 700)],
        Phase.DECODE: [Load.of(sequences, 1, past) for sequences in (1, 3, 6, 12, 24, 48) for past in (200, 700)],
    }
    errors = []
    for profile in CATALOG.profiles(CATALOG.cluster("paper:6"), shape, 64):
        device = CATALOG.device(profile.device_id.rsplit("-", 1)[0])
        for (scheme, phase), model in DeviceLatency().fit(profile, "device").layers_.items():
            law = device.layer_law(size, scheme, 64)
            errors += [abs(model.predict(load) / law.seconds(phase, load) - 1) for load in loads[phase]]
    assert sum(errors) / len(errors) < 0.10


def test_users_add_and_replace_entries() -> None:
    """A document of the same form adds devices, kernels and clusters; an entry of a known name replaces it."""
    catalog = read_catalog([ADDED])
    assert catalog.devices["T4"].memory_gib == 8
    assert len(catalog.devices) == len(CATALOG.devices) + 1
    profiles = catalog.profiles(catalog.cluster("office"), catalog.shape("llama-3-8b"), 64, "mine")
    assert [profile.description.schemes for profile in profiles] == [("w16",), ("w16",)]
    assert read_catalog().devices["T4"].memory_gib == 14.76


def test_a_cluster_has_a_document_of_its_own() -> None:
    """What stands under a name in the catalog is the whole of a cluster document; host memory is shared evenly."""
    cluster = read_cluster(
        "{hosts: [{devices: {T4: 1, A10: 2}, memory_gib: 96, link: {gb_per_s: 10}}], usd_per_h: {A10: 1.5}}"
    )
    assert [place.device_id for place in cluster.devices] == ["T4-0", "A10-0", "A10-1"]
    profiles = CATALOG.profiles(cluster, CATALOG.shape("opt-125m"), 64)
    assert [profile.host_memory_bytes for profile in profiles] == [32 * 2**30] * 3
    assert [profile.usd_per_h for profile in profiles] == [0.7, 1.5, 1.5]
    assert [profile.host_link_bytes_per_s for profile in profiles] == [12 * 10**9, 24 * 10**9, 24 * 10**9]


@pytest.mark.parametrize(
    ("lookup", "said"),
    [
        (lambda catalog: catalog.shape("opt-30"), "There is no model 'opt-30'; did you mean opt-30b"),
        (lambda catalog: catalog.device("TPU"), "There is no device 'TPU'"),
        (lambda catalog: catalog.device("H100", "llm-pq-2023"), "has no figures for device 'H100'"),
        (lambda catalog: catalog.device("T4", "fast"), "There is no kernel set 'fast'; there are: "),
        (lambda catalog: catalog.cluster("paper:12"), "There is no cluster 'paper:12'; did you mean paper:"),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(lookup: object, said: str) -> None:
    """Each error names what was asked for, and close names or all of them."""
    with pytest.raises(NotFoundError) as caught:
        lookup(CATALOG)  # type: ignore[operator]
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("devices: {X: {memory_gib: 1}}", "devices.X.memory_gb_per_s"),
        ("devices: {X: {memory_gib: 1, memory_gb_per_s: 1, source: s, tflops: 1}}", "devices.X.tflops"),
        ("gadgets: {}", "gadgets"),
        ("devices: [", "is not YAML"),
        ("- T4", "no keys and values"),
        ("lengths: {l: {source: s, requests: []}}", "lengths.l.requests"),
        ("kernels: {k: {source: s, attention: {kv_passes: many}}}", "kernels.k.attention.kv_passes"),
        ("clusters: {c: {hosts: [{devices: {T4: 0}, link: {gb_per_s: 1}}]}}", "clusters.c"),
        ("clusters: {c: {hosts: []}}", "clusters.c"),
        ("devices: {X: {memory_gib: -1, memory_gb_per_s: 1, source: s}}", "devices.X"),
    ],
)
def test_malformed_documents_are_refused_by_field(content: str, said: str) -> None:
    """A misspelt key, a missing figure or a number that no device has is an error that names the field."""
    with pytest.raises(InvalidInputError) as caught:
        read_catalog([content])
    assert said in caught.value.message


@pytest.mark.parametrize("name", ["sharegpt", "azure"])
@pytest.mark.parametrize("num_requests", [1, 7, 500, 40_000])
def test_requests_follow_the_distribution(name: str, num_requests: int) -> None:
    """So many requests are drawn, none longer than the model takes, and many have the mean of what is left."""
    drawn = CATALOG.requests(name, num_requests, 4096)
    assert sum(bucket.count for bucket in drawn) == num_requests
    assert max(bucket.prompt_tokens + bucket.output_tokens for bucket in drawn) <= 4096
    cells = [cell for cell in CATALOG.lengths[name].requests if cell[0] + cell[1] <= 4096]
    mean = sum(prompt * count for prompt, _, count in cells) / sum(count for _, _, count in cells)
    if num_requests >= 500:
        assert sum(b.prompt_tokens * b.count for b in drawn) / num_requests == pytest.approx(mean, rel=0.02)


def test_a_distribution_that_is_too_long_is_refused() -> None:
    """A model whose context no request fits into is named by that."""
    with pytest.raises(InvalidInputError, match="longer than the model's 20 tokens"):
        CATALOG.requests("azure", 3, 20)


def test_a_catalog_can_be_made_of_parts() -> None:
    """It is plain data."""
    assert replace(CATALOG, clusters={}, lengths={}) == Catalog(CATALOG.models, CATALOG.devices, CATALOG.kernels)
