"""How long plans take to prove, and how near to optimal they are when time is up.

    python benchmarks/planner_speed.py [--cases opt-30b,bloom-176b,sixteen,sixty-four,400-layers]
                                       [--objectives like,unlike,budget,deadline]

Devices and models of the catalog; layers count alike, as they do there, or are unlike (log-normal sensitivities, the
same in every run), which is harder; then also under a quality budget, or at the least cost under a deadline. Time
limits are 5, 20 and 60 s. The last two cases are very large.
"""

import argparse
from dataclasses import dataclass, replace

import numpy as np

from llmpq.plan import LayerSensitivity, LengthBucket, PlanningProblem, PlanOptions
from llmpq.scenario import Scenario
from llmpq.schemes import SCHEMES
from planner_svc.planner import Planner
from planner_svc.quality import step_omega
from planner_svc.scenario import resolve

WORKLOAD = (LengthBucket(prompt_tokens=512, output_tokens=100, count=32),)
#: US dollars for an hour of a device that the catalog has no price of.
OTHER_PRICE = 10.0


@dataclass(frozen=True)
class Case:
    """What is planned for.

    Attributes:
        scenario: Devices and model.
        limit_s: Time to plan.
        deadline_s: Longest time of the batch, between those of the fastest and of the cheapest plan.
        num_layers: Instead of the model's; 0 for these.
    """

    scenario: Scenario
    limit_s: float
    deadline_s: float
    num_layers: int = 0


def _llama(*devices: str, each: int) -> Scenario:
    """Llama-3.1-405b on one host."""
    names = ", ".join(f"{name}: {each}" for name in devices)
    document = f"{{hosts: [{{devices: {{{names}}}, link: {{gb_per_s: 12.5, latency_us: 50}}}}]}}"
    return Scenario(model_name="llama-3.1-405b", cluster_document=document, workload=WORKLOAD)


EIGHT = ("T4", "V100-32", "A100-80", "H100", "A10", "L4", "P100-16", "RTX3090")
CASES = {
    "opt-30b": Case(Scenario(cluster_name="paper:3", workload=WORKLOAD), 5.0, 25.0),
    "bloom-176b": Case(Scenario(cluster_name="paper:7", workload=WORKLOAD), 20.0, 24.0),
    "sixteen": Case(_llama("T4", "V100-32", "A100-80", "H100", each=4), 60.0, 20.0),
    "sixty-four": Case(_llama(*EIGHT, each=8), 60.0, 20.0),
    "400-layers": Case(_llama("A10", "V100-32", "A100-80", "H200", each=4), 60.0, 60.0, num_layers=400),
}

#: Half of what w4 on every layer loses.
BUDGET = 0.5


def main() -> None:
    """Plans each case and prints what was proven."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="default %(default)s")
    parser.add_argument("--objectives", default="like,unlike,budget,deadline", help="default %(default)s")
    arguments = parser.parse_args()
    for name in arguments.cases.split(","):
        for objective in arguments.objectives.split(","):
            print(f"{name}: {objective}: {_planned(CASES[name], objective)}", flush=True)


def _planned(case: Case, objective: str) -> str:
    problem = resolve(case.scenario)
    shape = replace(problem.shape, num_layers=case.num_layers or problem.shape.num_layers)
    devices = tuple(replace(device, usd_per_h=device.usd_per_h or OTHER_PRICE) for device in problem.devices)
    problem = replace(problem, shape=shape, devices=devices)
    options = PlanOptions(time_limit_s=case.limit_s, quality_budget=BUDGET if objective == "budget" else None)
    if objective == "deadline":
        options = replace(options, objective="cost", deadline_s=case.deadline_s)
    sensitivities = () if objective == "like" else _unlike(problem)
    plan = Planner(case.limit_s).create(replace(problem, sensitivities=sensitivities, options=options))
    estimate = plan.estimate
    took = f"{estimate.solve_s:.1f} s of {case.limit_s:g}, within {estimate.gap:.2%}"
    return f"{took}; {estimate.total_s:.2f} s, {len(plan.stages)} stages, groups of {estimate.layers_per_group}"


def _unlike(problem: PlanningProblem) -> tuple[LayerSensitivity, ...]:
    shares = np.random.default_rng(0).lognormal(0, 0.7, problem.shape.num_layers)
    shares /= shares.sum()
    return tuple(
        LayerSensitivity(layer, scheme, float(share * step_omega(scheme)))
        for layer, share in enumerate(shares)
        for scheme in SCHEMES
    )


if __name__ == "__main__":
    main()
