"""The mixed-integer program of LLM-PQ, for one device order and one choice of micro-batch sizes.

The formulation differs from the paper's binaries z[i,j,b] with pairwise contiguity rows: cuts and counts are integral
and z follows (`constraints.count_layers`), which HiGHS solves about ten times faster. The program is compiled once and
its data are parameters; a search solves it for many candidates.
"""

from dataclasses import dataclass

import cvxpy as cp
import numpy as np
from scipy.optimize import linear_sum_assignment

from planner_svc import constraints as rows
from planner_svc.assignment import AssignmentProblem, Floats
from planner_svc.constraints import Parameters, Variables

#: HiGHS lets rows be violated by this much. Memory rows are shares of the capacity, so whoever states the capacity
#: leaves this share of it free.
TOLERANCE = 1e-6

#: Columns of each stage's layers: for each stage, the scheme of each of its layers.
Assignment = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Solution:
    """What a solve came to.

    Attributes:
        assignment: For each stage, the scheme (by number) of each of its layers; None if none was found.
        bound_s: No assignment has a lower objective; infinite if there is none at all.
    """

    assignment: Assignment | None
    bound_s: float


class AssignmentModel:
    """A compiled program for all problems with these dimensions, sensitivities and budget.

    Args:
        like: A problem; its numbers of layers, stages and schemes, omega and budget are compiled in.
        is_relaxed: Drop integrality: the solution's bound is then a lower bound, and there is no assignment.
    """

    def __init__(self, like: AssignmentProblem, *, is_relaxed: bool = False) -> None:
        self._omega = like.omega
        self._is_relaxed = is_relaxed
        self._v = v = Variables(like.num_layers, like.num_stages, like.num_schemes, is_relaxed=is_relaxed)
        self._p = p = Parameters(like.num_stages, like.num_schemes)
        self._program = cp.Problem(
            cp.Minimize(v.objective),
            [
                *rows.assign_each_layer(v),
                *rows.count_layers(v),
                *rows.keep_stages_contiguous(v),
                *rows.use_every_stage(v),
                *rows.run_only_what_devices_can(v, p),
                *rows.allow_only_given_schemes(v, like.is_allowed),
                *rows.fit_memory(v, p),
                *rows.time_prefill(v, p),
                *rows.time_decode(v, p),
                *rows.close_the_loop(v, p),
                *rows.sum_losses(v, like.omega, like.quality_budget),
                *rows.sum_objective(v, p),
            ],
        )

    def solve(
        self,
        problem: AssignmentProblem,
        *,
        time_limit_s: float,
        cutoff_s: float = np.inf,
        relative_gap: float = 1e-4,
    ) -> Solution:
        """Finds the assignment with the least objective.

        Args:
            problem: One that fits (`AssignmentProblem.fits`).
            time_limit_s: The best assignment found by then is returned, with the bound proven by then.
            cutoff_s: Assignments that are not below it are of no interest.
            relative_gap: Stop when the bound is this close to the best assignment.
        """
        unit_s = problem.time_bound_s() or 1.0
        self._load(problem, unit_s)
        # Not Problem.solve: it warns wherever a time limit ends the search, and hides the bound.
        data, chain, inverse = self._program.get_problem_data(cp.HIGHS)
        options = {"time_limit": time_limit_s, "mip_rel_gap": relative_gap, "mip_feasibility_tolerance": TOLERANCE}
        if np.isfinite(cutoff_s):
            options["objective_bound"] = cutoff_s / unit_s
        raw = chain.solve_via_data(self._program, data, solver_opts=options)
        info = raw["info"]
        if raw["model_status"] == "kInfeasible":
            return Solution(None, cutoff_s)
        if self._is_relaxed:
            is_optimal = raw["model_status"] == "kOptimal"
            return Solution(None, info.objective_function_value * unit_s if is_optimal else 0.0)
        # With a cutoff, HiGHS gives up whatever cannot be below it, so its bound holds up to the cutoff only.
        bound_s = min(info.mip_dual_bound * unit_s, cutoff_s)
        if info.primal_solution_status == 0:
            return Solution(None, bound_s)
        values = chain.invert(raw, inverse).primal_vars
        return Solution(self._decode(values), bound_s)

    def _load(self, problem: AssignmentProblem, unit_s: float) -> None:
        """Sets the parameters; times are those of all frames and rounds in units of `unit_s`, of the order of 1."""
        p, schedule = self._p, problem.schedule
        frames, lanes, rounds = schedule.num_frames, schedule.num_lanes, schedule.num_rounds
        prefill_scale, decode_scale = frames / unit_s, lanes * rounds / unit_s
        layer_prefill_s = np.where(problem.is_usable, problem.layer_prefill_s, 0.0)
        layer_decode_s = np.where(problem.is_usable, problem.layer_decode_s, 0.0)
        p.layer_prefill.value = layer_prefill_s.ravel() * prefill_scale
        p.layer_decode.value = layer_decode_s.ravel() * decode_scale
        p.outside_prefill.value = problem.outside_prefill_s * prefill_scale
        p.outside_decode.value = problem.outside_decode_s * decode_scale
        p.link_prefill.value = problem.link_prefill_s * prefill_scale
        p.link_decode.value = problem.link_decode_s * decode_scale
        p.memory_share.value = (problem.layer_bytes / problem.capacity_bytes[:, None]).ravel()
        p.max_count.value = np.where(problem.is_usable, problem.num_layers, 0).ravel()
        p.prefill_weights.value = np.array([1, frames - 1]) / frames
        p.server_weights.value = np.array([1, lanes * rounds - 1]) / max(lanes * rounds, 1)
        p.latency_weights.value = np.array([rounds, lanes - 1]) / max(lanes * rounds, 1)
        p.theta.value = problem.theta_s / unit_s

    def _decode(self, values: dict[int, Floats]) -> Assignment:
        """Reads cuts and counts, and solves the transportation problem that is left exactly."""
        v, num_schemes = self._v, self._omega.shape[1]
        counts = np.rint(values[v.count.id]).astype(int).reshape(-1, num_schemes)
        cuts = np.concatenate(([0], counts.sum(axis=1).cumsum()))
        return tuple(
            _cheapest(self._omega[first:end], stage_counts)
            for first, end, stage_counts in zip(cuts[:-1], cuts[1:], counts, strict=True)
        )


def _cheapest(omega: Floats, counts: np.ndarray) -> tuple[int, ...]:
    """Schemes for the layers of `omega` (layers, schemes), each as often as `counts` says, with the least sum."""
    slots = np.repeat(np.arange(len(counts)), counts)
    _, order = linear_sum_assignment(omega[:, slots])
    return tuple(int(slots[slot]) for slot in order)
