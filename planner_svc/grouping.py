"""Problems that are too large for a table of all segments: layers in groups first, then each on its own.

The best split of groups is found by branch and bound, and bit-width transfer then moves its boundaries and changes its
precisions layer by layer (LLM-PQ's layer grouping, with a refinement). What groups cannot do is no bound for layers, so
the bound of such a solution is that of the relaxed counts program for single layers.
"""

import time
from math import inf

from planner_svc.assignment import AssignmentProblem, Floats
from planner_svc.milp import Solution
from planner_svc.segment_losses import SegmentLosses
from planner_svc.splits import solve_splits
from planner_svc.transfer import Transfer

#: Splits of groups are looked for up to this far above what is of interest, because they are refined.
_ABOVE_CUTOFF = 0.03


class GroupedSolver:
    """Solves inner problems that have the same omega.

    Args:
        omega: (layers, schemes).

    Attributes:
        layers_per_group: Layers of a group in the newest problem; 0 before there is one.
    """

    def __init__(self, omega: Floats) -> None:
        num_layers, num_schemes = omega.shape
        sizes = [size for size in range(2, num_layers // 2 + 1) if num_layers % size == 0]
        self._losses = {size: SegmentLosses(omega.reshape(-1, size, num_schemes).sum(axis=1)) for size in sizes}
        self.layers_per_group = 0

    def solve(
        self, problem: AssignmentProblem, *, time_limit_s: float, cutoff_s: float, relative_gap: float
    ) -> Solution | None:
        """A good assignment, without a bound; None if there are no groups, because their tables are too large as well.

        Args:
            problem: One that fits (`AssignmentProblem.fits`).
            time_limit_s: Half of it is for the splits of groups, the rest for refinement.
            cutoff_s: Assignments that are not below it are of no interest.
            relative_gap: Stop when the bound for groups is this close to the best split.
        """
        deadline = time.monotonic() + time_limit_s
        limits = {"time_limit_s": time_limit_s / 2, "relative_gap": relative_gap}
        limits["cutoff_s"] = cutoff_s * (1 + _ABOVE_CUTOFF)
        for size, losses in self._losses.items():
            grouped = problem.grouped(size)
            solution = solve_splits(grouped, losses, **limits) if grouped.fits() else None
            if solution is not None:
                self.layers_per_group = size
                return self._refined(problem, solution, size, deadline)
        return None

    @staticmethod
    def _refined(problem: AssignmentProblem, grouped: Solution, size: int, deadline: float) -> Solution:
        if grouped.assignment is None:
            return Solution(None, -inf)
        start = tuple(tuple(scheme for scheme in stage for _ in range(size)) for stage in grouped.assignment)
        assignment, objective_s = Transfer(problem, deadline).improve(start)
        return Solution(assignment if objective_s < inf else None, -inf)
