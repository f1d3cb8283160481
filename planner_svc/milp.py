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
from planner_svc.program_data import TOLERANCE, ProgramData

#: Columns of each stage's layers: for each stage, the scheme of each of its layers.
Assignment = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Solution:
    """What a solve came to.

    Attributes:
        assignment: For each stage, the scheme (by number) of each of its layers; None if none was found.
        bound_s: No assignment has a lower objective; infinite if there is none at all.
        is_final: Whether a longer solve could not find more.
    """

    assignment: Assignment | None
    bound_s: float
    is_final: bool = True


class AssignmentModel:
    """A compiled program for all problems with these dimensions, sensitivities and budget.

    Args:
        like: A problem; its numbers of layers, stages and schemes, omega and budget are compiled in.
    """

    def __init__(self, like: AssignmentProblem) -> None:
        self._omega = like.omega
        self._v = v = Variables(like.num_layers, like.num_stages, like.num_schemes)
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
                *rows.meet_the_deadline(v, p, like.deadline_s),
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
        data = ProgramData.of(problem)
        self._p.load(data)
        # Not Problem.solve: it warns wherever a time limit ends the search, and hides the bound.
        program, chain, inverse = self._program.get_problem_data(cp.HIGHS)
        options = {"time_limit": time_limit_s, "mip_rel_gap": relative_gap, "mip_feasibility_tolerance": TOLERANCE}
        if np.isfinite(cutoff_s):
            options["objective_bound"] = cutoff_s / data.unit_s
        raw = chain.solve_via_data(self._program, program, solver_opts=options)
        info = raw["info"]
        if raw["model_status"] == "kInfeasible":
            return Solution(None, cutoff_s)
        # With a cutoff, HiGHS gives up whatever cannot be below it, so its bound holds up to the cutoff only.
        bound_s = min(info.mip_dual_bound * data.unit_s, cutoff_s)
        is_final = raw["model_status"] != "kTimeLimit"
        if info.primal_solution_status == 0:
            return Solution(None, bound_s, is_final)
        values = chain.invert(raw, inverse).primal_vars
        return Solution(self._decode(values), bound_s, is_final)

    def _decode(self, values: dict[int, Floats]) -> Assignment:
        counts = np.rint(values[self._v.count.id]).reshape(-1, self._omega.shape[1])
        return cheapest_assignment(counts, self._omega)


def cheapest_assignment(counts: Floats, omega: Floats) -> Assignment:
    """The assignment with the least sum of omega that has these counts: the transportation problem, solved exactly.

    Args:
        counts: (stages, schemes) layers of each stage at each scheme, whole numbers that add up to the layers.
        omega: (layers, schemes).
    """
    cuts = np.concatenate(([0], counts.sum(axis=1).cumsum())).astype(int)
    return tuple(
        _cheapest(omega[first:end], stage_counts.astype(int))
        for first, end, stage_counts in zip(cuts[:-1], cuts[1:], counts, strict=True)
    )


def _cheapest(omega: Floats, counts: np.ndarray) -> tuple[int, ...]:
    """Schemes for the layers of `omega` (layers, schemes), each as often as `counts` says, with the least sum."""
    slots = np.repeat(np.arange(len(counts)), counts)
    is_allowed = np.isfinite(omega)
    forbidden = omega[is_allowed].sum() + 1  # more than any choice without a forbidden scheme
    _, order = linear_sum_assignment(np.where(is_allowed, omega, forbidden)[:, slots])
    return tuple(int(slots[slot]) for slot in order)
