"""Plans: what their hash stands for."""

from dataclasses import replace

import pytest

from llmpq.plan import LayerPrecision, Plan, PlanEstimate, StageMemory, StagePlan

STAGE = StagePlan("fast", 0, (LayerPrecision("w8"), LayerPrecision("w4", 64)))
PLAN = Plan(
    model="models/m",
    strategy="llm-pq",
    stages=(STAGE, StagePlan("slow", 2, (LayerPrecision("w4", 64),))),
    prefill_micro_batch=2,
    decode_micro_batch=8,
    num_lanes=3,
    max_sequence_tokens=100,
    max_prefill_tokens=400,
)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "models/n"},
        {"prefill_micro_batch": 3},
        {"decode_micro_batch": 9},
        {"num_lanes": 2},
        {"max_sequence_tokens": 101},
        {"max_prefill_tokens": 401},
        {"stages": PLAN.stages[::-1]},
        {"stages": (replace(STAGE, device_id="other"), PLAN.stages[1])},
        {"stages": (replace(STAGE, layers=(LayerPrecision("w8"), LayerPrecision("w4", 128))), PLAN.stages[1])},
        {"stages": (replace(STAGE, layers=(LayerPrecision("w16"), LayerPrecision("w4", 64))), PLAN.stages[1])},
    ],
)
def test_the_hash_changes_with_every_decision(change: dict[str, object]) -> None:
    """Two plans that would run differently have different hashes."""
    assert replace(PLAN, **change).with_hash().hash != PLAN.with_hash().hash


def test_the_hash_does_not_depend_on_predictions() -> None:
    """Estimates, predicted memory and times, and who made the plan are not part of its identity."""
    predicted = replace(
        PLAN,
        strategy="uniform",
        estimate=PlanEstimate(total_s=9.0),
        stages=(replace(STAGE, memory=StageMemory(1, 2, 3, 4, 5), prefill_ms=6.0, decode_ms=7.0), PLAN.stages[1]),
        hash="old",
    )
    assert predicted.with_hash().hash == PLAN.with_hash().hash


def test_a_plan_knows_its_slots_and_where_stages_end() -> None:
    """Slots are lanes times decode micro-batch; a stage ends before its successor begins."""
    assert PLAN.num_slots == 24
    assert STAGE.end_layer == PLAN.stages[1].first_layer == 2


def test_memory_adds_up_without_the_budget() -> None:
    """Used memory is what counts against the budget."""
    assert StageMemory(1, 10, 100, 1000, 10**6).used_bytes == 1111
