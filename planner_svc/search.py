"""The outer search: best-first over candidates, each bounded ever more closely before its program is solved.

A candidate enters with a bound that costs microseconds (`SearchSpace.objective_bounds_s`) and comes back with that of
the relaxed counts program, which costs about a millisecond. While it is still the most promising one, it is looked at
more closely, with more time from look to look: by branch and bound over splits, of groups of layers where there are too
many of them (`grouping`). What that leaves open is left to the counts program, and where layers are unlike to the full
program.
The search ends when no candidate is left that could improve on the incumbent by more than the optimality gap that the
options allow.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from math import inf

from llmpq.plan import Plan
from planner_svc.assignment import AssignmentProblem, Floats
from planner_svc.counts import counts_bound_s, solve_counts
from planner_svc.grouping import GroupedSolver
from planner_svc.milp import Assignment, AssignmentModel, Solution, cheapest_assignment
from planner_svc.segment_losses import SegmentLosses
from planner_svc.space import SearchSpace
from planner_svc.splits import solve_splits
from planner_svc.transfer import Transfer

#: Improvements that arithmetic cannot tell from none, as a share of the objective.
_LEAST_GAP = 1e-9
#: Gap of a single program, as a share of the gap that the search allows.
_SOLVE_GAP_SHARE = 0.25

#: Relaxed programs to solve at most before the next closer look: incumbents prune.
_RELAXATIONS_PER_LOOK = 100

#: Time of the first close look at a candidate; each further one takes `_LOOK_FACTOR` times as long, up to the longest,
#: so that a cancelled search ends soon.
_FIRST_LOOK_S, _LOOK_FACTOR, _LONGEST_LOOK_S = 1.0, 4.0, 16.0
#: Choices (stages * layers * schemes) of the full program, at most; that of more is not even made in time.
_MAX_CHOICES = 12_000


@dataclass(frozen=True)
class Progress:
    """How far a search is; `best_objective_s` is infinite until there is a plan."""

    candidates_done: int
    candidates_total: int
    best_objective_s: float


#: Told of progress after each step. Whatever it raises ends the search.
OnProgress = Callable[[Progress], None]


class Search:
    """One search.

    Args:
        space: Where to search.
        incumbent: A plan to improve on, or None.
        deadline: Value of `time.monotonic` at which to stop and return the best plan so far.
        on_progress: Told after each step.
    """

    def __init__(self, space: SearchSpace, incumbent: Plan | None, deadline: float, on_progress: OnProgress) -> None:
        self._space = space
        self._best = incumbent
        self._deadline = deadline
        self._on_progress = on_progress
        self._models: dict[int, AssignmentModel] = {}
        self._losses = SegmentLosses(space.omega)
        self._groups = GroupedSolver(space.omega)
        self._beyond_splits: set[int] = set()  # candidates that are left to the programs
        self._bounded: list[tuple[float, int]] = []  # heap of (bound, number of the candidate)
        self._relaxed: list[tuple[float, int, int]] = []  # heap of (bound, number, close looks so far)
        self._relaxed_bounds_s: dict[bytes, float] = {}
        self._closed_bound_s = inf
        self._num_relaxed_since_look = 0
        self._is_any_undecided = False

    def run(self) -> Plan | None:
        """The best plan found, with the gap to what is not excluded; None if there is none, see `is_exhaustive`."""
        candidates = self._space.candidates
        self._bounded = [(bound_s, number) for number, bound_s in enumerate(self._space.objective_bounds_s)]
        heapify(self._bounded)
        while self._open_bound_s < self._cutoff_s and not self._is_late:
            if self._should_look():
                self._look(*heappop(self._relaxed))
            else:
                self._relax(*heappop(self._bounded))
            self._on_progress(Progress(len(candidates) - self._num_open, len(candidates), self._best_objective_s))
        return self._with_gap(self._best) if self._best else None

    @property
    def is_exhaustive(self) -> bool:
        """Whether a run has looked everywhere."""
        return not self._num_open and not self._is_any_undecided

    @property
    def _best_objective_s(self) -> float:
        return self._space.objective_s(self._best) if self._best else inf

    @property
    def _cutoff_s(self) -> float:
        """An objective must be below this to be of interest."""
        return self._best_objective_s * (1 - max(self._space.options.effective_optimality_gap, _LEAST_GAP))

    @property
    def _solve_gap(self) -> float:
        return max(self._space.options.effective_optimality_gap * _SOLVE_GAP_SHARE, _LEAST_GAP)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() >= self._deadline

    @property
    def _num_open(self) -> int:
        return len(self._bounded) + len(self._relaxed)

    @property
    def _open_bound_s(self) -> float:
        """No open candidate has a lower objective; infinite if none is open."""
        return min((heap[0][0] for heap in (self._bounded, self._relaxed) if heap), default=inf)

    def _should_look(self) -> bool:
        """Look closer once the best relaxed candidate leads, or after a while in any case: incumbents prune."""
        if not self._relaxed or self._relaxed[0][0] >= self._cutoff_s:
            return False
        is_leading = not self._bounded or self._relaxed[0][0] <= self._bounded[0][0]
        return is_leading or self._num_relaxed_since_look >= _RELAXATIONS_PER_LOOK

    def _relax(self, bound_s: float, number: int) -> None:
        """Replaces a candidate's bound by that of its relaxed program; drops it if it cannot fit.

        Of candidates whose devices are in other orders but which are otherwise alike, one is enough where layers are
        alike, and one bound is enough in any case.
        """
        problem = self._space.problem(self._space.candidates[number])
        signature = problem.signature
        is_known = signature in self._relaxed_bounds_s
        if (is_known and problem.has_like_layers) or not problem.fits():
            return
        if not is_known:
            self._num_relaxed_since_look += 1
            self._relaxed_bounds_s[signature] = counts_bound_s(problem)
        if self._relaxed_bounds_s[signature] < inf:
            heappush(self._relaxed, (max(bound_s, self._relaxed_bounds_s[signature]), number, 0))

    def _look(self, bound_s: float, number: int, num_looks: int) -> None:
        """Solves a program of a candidate and keeps its plan if it is the best so far."""
        self._num_relaxed_since_look = 0
        problem = self._space.problem(self._space.candidates[number])
        limit_s = min(_FIRST_LOOK_S * _LOOK_FACTOR**num_looks, _LONGEST_LOOK_S)
        limit_s = min(limit_s, max(self._deadline - time.monotonic(), 0.0))
        limits = {"time_limit_s": limit_s, "cutoff_s": self._cutoff_s, "relative_gap": self._solve_gap}
        solution = self._split(problem, number, limits)
        if solution is None:
            solution = self._solve(problem, limits, is_first=num_looks == 0)
        bound_s = max(bound_s, solution.bound_s)
        if solution.assignment is not None:
            self._keep(self._space.plan(self._space.candidates[number], solution.assignment, "llm-pq"))
        if not solution.is_final and bound_s < self._cutoff_s:
            heappush(self._relaxed, (bound_s, number, num_looks + 1))
            return
        self._closed_bound_s = min(self._closed_bound_s, bound_s)
        self._is_any_undecided |= solution.assignment is None and bound_s < self._cutoff_s

    def _split(self, problem: AssignmentProblem, number: int, limits: Mapping[str, float]) -> Solution | None:
        """What branch and bound over splits comes to; None where it does not apply or has done what it can."""
        if number in self._beyond_splits:
            return None
        solution = solve_splits(problem, self._losses, **limits)
        if solution is None or solution.is_final:
            self._beyond_splits.add(number)
        if solution is None:
            solution = self._groups.solve(problem, **limits)
        return solution and replace(solution, is_final=not _has_program(problem))

    def _solve(self, problem: AssignmentProblem, limits: Mapping[str, float], *, is_first: bool) -> Solution:
        """What the programs come to."""
        has_program = _has_program(problem)
        if has_program and not problem.has_like_layers and not (is_first and problem.is_allowed.all()):
            return self._model(problem).solve(problem, **limits)
        found = solve_counts(problem, **limits)
        assignment = None if found.counts is None else self._assigned(problem, found.counts)
        return Solution(assignment, found.bound_s, found.is_final and (problem.has_like_layers or not has_program))

    def _assigned(self, problem: AssignmentProblem, counts: Floats) -> Assignment | None:
        """An assignment with these counts or better ones; None if the quality budget does not admit it."""
        assignment = cheapest_assignment(counts, problem.omega)
        if problem.has_like_layers:
            return assignment
        until = min(self._deadline, time.monotonic() + _FIRST_LOOK_S)
        assignment, objective_s = Transfer(problem, until).improve(assignment)
        return assignment if objective_s < inf else None

    def _keep(self, plan: Plan) -> None:
        if self._space.objective_s(plan) < self._best_objective_s:
            self._best = plan

    def _model(self, problem: AssignmentProblem) -> AssignmentModel:
        if problem.num_stages not in self._models:
            self._models[problem.num_stages] = AssignmentModel(problem)
        return self._models[problem.num_stages]

    def _with_gap(self, plan: Plan) -> Plan:
        objective_s = self._best_objective_s
        bound_s = min(self._open_bound_s, self._closed_bound_s)
        gap = max(1 - bound_s / objective_s, 0.0) if objective_s else 0.0
        estimate = replace(
            plan.estimate, gap=gap, layers_per_group=self._groups.layers_per_group * self._space.layers_per_row
        )
        return replace(plan, estimate=estimate)


def _has_program(problem: AssignmentProblem) -> bool:
    """Whether a program may say what splits leave open: where layers are alike, that of counts does."""
    return problem.has_like_layers or problem.num_stages * problem.omega.size <= _MAX_CHOICES
