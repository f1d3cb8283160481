"""How long plans take to prove, and how near to optimal they are when time is up.

    python benchmarks/planner_speed.py [--cases opt-30b,bloom-176b,sixteen]

Devices and models of the catalog; layers count alike, as they do there, or are unlike (log-normal sensitivities, the
same in every run), which is harder; then also under a quality budget. Time limits are 5, 20 and 60 s.
"""

import argparse
from dataclasses import replace

import numpy as np

from llmpq.plan import LayerSensitivity, LengthBucket, PlanningProblem, PlanOptions
from llmpq.scenario import Scenario
from llmpq.schemes import SCHEMES
from planner_svc.planner import Planner
from planner_svc.quality import step_omega
from planner_svc.scenario import resolve

WORKLOAD = (LengthBucket(prompt_tokens=512, output_tokens=100, count=32),)
SIXTEEN = "{hosts: [{devices: {T4: 4, V100-32: 4, A100-80: 4, H100: 4}, link: {gb_per_s: 12.5, latency_us: 50}}]}"
CASES = {
    "opt-30b": (Scenario(cluster_name="paper:3", workload=WORKLOAD), 5.0),
    "bloom-176b": (Scenario(cluster_name="paper:7", workload=WORKLOAD), 20.0),
    "sixteen": (Scenario(model_name="llama-3.1-405b", cluster_document=SIXTEEN, workload=WORKLOAD), 60.0),
}

#: Half of what w4 on every layer loses.
BUDGET = 0.5


def main() -> None:
    """Plans each case and prints what was proven."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="default %(default)s")
    for name in parser.parse_args().cases.split(","):
        scenario, limit_s = CASES[name]
        problem = resolve(scenario)
        unlike = _unlike(problem)
        for layers, sensitivities, budget in (("like", (), None), ("unlike", unlike, None), ("unlike", unlike, BUDGET)):
            options = PlanOptions(time_limit_s=limit_s, quality_budget=budget)
            planner = Planner(limit_s)
            plan = planner.create(replace(problem, sensitivities=sensitivities, options=options))
            estimate = plan.estimate
            shape = f"{problem.shape.num_layers} {layers} layers, {len(problem.devices)} devices"
            shape += f", sum of omega at most {budget:g}" if budget else ""
            print(f"{name}: {shape}: {estimate.solve_s:.1f} s of {limit_s:g}, within {estimate.gap:.2%}", flush=True)


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
