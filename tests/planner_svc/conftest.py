"""A problem to start from."""

import pytest

from llmpq.plan import LengthBucket, PlanningProblem, PlanOptions
from tests.planner_svc.devices import TINY, affine_law, device


@pytest.fixture
def problem() -> PlanningProblem:
    """Two unlike devices, a tiny model, 8 requests."""
    return PlanningProblem(
        model="model",
        shape=TINY,
        devices=(device("fast", affine_law()), device("slow", affine_law(3.0), outside_slowdown=3.0)),
        workload=(LengthBucket(prompt_tokens=40, output_tokens=20, count=8),),
        options=PlanOptions(time_limit_s=20.0),
    )
